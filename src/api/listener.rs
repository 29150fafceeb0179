//! How tonic accepts hurried connections.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tonic::transport::server::Connected;

use crate::hurry::{Connection, Guest, Hurried};

impl Connected for Connection {
    type ConnectInfo = Arc<Guest>;

    fn connect_info(&self) -> Arc<Guest> {
        self.guest()
    }
}

/// The connections, as they come.
pub(super) fn incoming(hurried: Hurried) -> impl Stream<Item = Result<Connection, Infallible>> {
    stream::unfold(hurried, async |hurried| {
        let (connection, _) = hurried.accept().await;
        Some((Ok(connection), hurried))
    })
}

//! Callers who ask all replicas for tokens all the time, and note what they hear.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use token_wallet::clock::Clock;
use token_wallet::proto::v1::GetAccessTokenRequest;
use token_wallet::proto::v1::wallet_service_client::WalletServiceClient;
use token_wallet::sandbox::Sandbox;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Channel;

use crate::support::clients::Key;
use crate::support::cluster::Cluster;
use crate::support::dice::Dice;
use crate::support::real_time::now;
use crate::support::service::Wallet;

/// How long a caller waits before it asks again.
const PAUSE: Duration = Duration::from_millis(20);

/// What one get was answered.
pub struct Answer {
    pub user: usize,
    pub begun: Instant,
    pub ended: Instant,
    pub told: Result<Token, Status>,
}

/// What a token was when it was handed out.
pub struct Token {
    /// The provider's API took it.
    pub accepted: bool,
    /// Its time, as told, was over.
    pub expired: bool,
}

pub struct Load {
    shared: Arc<Shared>,
    callers: TaskTracker,
}

struct Shared {
    /// By replica; a new process has a new one.
    channels: Mutex<Vec<Channel>>,
    key: Key,
    sandbox: Arc<Sandbox>,
    answers: Mutex<Vec<Answer>>,
    stop: CancellationToken,
}

impl Load {
    /// So many callers for each replica. Each walks through the users `u0`, `u1` and so on.
    pub fn start(cluster: &Cluster, users: usize, callers: usize) -> Self {
        let shared = Arc::new(Shared {
            channels: Mutex::new(cluster.replicas.iter().map(Wallet::channel).collect()),
            key: Key::new(&cluster.first().key),
            sandbox: Arc::clone(&cluster.first().sandbox),
            answers: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        for caller in 0..callers * cluster.replicas.len() {
            let (shared, replica) = (Arc::clone(&shared), caller % cluster.replicas.len());
            tasks.spawn(async move { shared.ask(replica, users, Dice::new(caller as u64)).await });
        }
        tasks.close();
        Self { shared, callers: tasks }
    }

    /// A replica has a new process.
    pub fn moved(&self, replica: usize, channel: Channel) {
        self.shared.channels.lock().unwrap()[replica] = channel;
    }

    /// Ends it, and tells what was heard.
    pub async fn end(self) -> Vec<Answer> {
        self.shared.stop.cancel();
        self.callers.wait().await;
        std::mem::take(&mut self.shared.answers.lock().unwrap())
    }
}

impl Shared {
    async fn ask(&self, replica: usize, users: usize, mut dice: Dice) {
        let mut user = usize::try_from(dice.below(users as u64)).unwrap();
        while !self.stop.is_cancelled() {
            user = (user + 1) % users;
            let channel = self.channels.lock().unwrap()[replica].clone();
            let mut wallet = WalletServiceClient::with_interceptor(channel, self.key.clone());
            let (user_id, provider) = (format!("u{user}"), "sandbox".into());
            let begun = now();
            let request = GetAccessTokenRequest { user_id, provider, ..Default::default() };
            let told = wallet.get_access_token(request).await.map(|got| {
                let got = got.into_inner();
                let expires = got.expire_time.unwrap();
                Token {
                    accepted: self.sandbox.accepts(&got.access_token),
                    expired: expires.seconds * 1_000 + 1_000 < Clock::system().now().millis(),
                }
            });
            self.answers.lock().unwrap().push(Answer { user, begun, ended: now(), told });
            tokio::time::sleep(PAUSE).await;
        }
    }
}

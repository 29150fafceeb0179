//! A hot get, whole: API key checked, sealed token opened, against a bare tonic echo with an answer of the same size.
//!
//! `cargo bench --bench get`. Both servers run on one thread, the callers on another, in turns within one run; what
//! counts is the ratio. SQLite; memory answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a bench that cannot go on says so")]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    reason = "of the tests' support, only the harness is used"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use prost::Message as _;
use support::clients::{Key, Keyed};
use support::harness::{Engine, Harness};
use token_wallet::proto::v1;
use token_wallet::proto::v1::wallet_service_client::WalletServiceClient;
use token_wallet::proto::v1::wallet_service_server::{WalletService, WalletServiceServer};
use token_wallet::sandbox::Options;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

/// Runs of each, in turns; medians are told.
const RUNS: usize = 5;
const RUN: Duration = Duration::from_secs(2);
const IN_FLIGHT: usize = 256;
const CONNECTIONS: usize = 4;

/// Answers every get with the same.
struct Echo(v1::GetAccessTokenResponse);

#[tonic::async_trait]
impl WalletService for Echo {
    async fn get_access_token(
        &self,
        _: Request<v1::GetAccessTokenRequest>,
    ) -> Result<Response<v1::GetAccessTokenResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn batch_get_access_tokens(
        &self,
        _: Request<v1::BatchGetAccessTokensRequest>,
    ) -> Result<Response<v1::BatchGetAccessTokensResponse>, Status> {
        Err(Status::not_found("not of this bench"))
    }
}

/// Where the two are, and the key.
struct Servers {
    wallet: SocketAddr,
    echo: SocketAddr,
    key: String,
    answer_bytes: usize,
}

fn main() {
    let (ready, started) = oneshot::channel();
    let (done, ended) = oneshot::channel::<()>();
    let serving = std::thread::spawn(move || runtime().block_on(serve(ready, ended)));
    runtime().block_on(measure(started));
    done.send(()).unwrap();
    serving.join().unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn serve(ready: oneshot::Sender<Servers>, ended: oneshot::Receiver<()>) {
    // A token of a kilobyte.
    let options = Options { secret_prefix: Some("t".repeat(980)), ..Options::default() };
    let mut harness = Harness::with(Engine::Sqlite, options).await;
    harness.link("demo", "demo").await;
    let answer = harness.get("demo").await.unwrap();
    let answer_bytes = answer.encoded_len();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let echo = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(WalletServiceServer::new(Echo(answer)));
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    let servers = Servers { wallet: harness.addresses().grpc, echo, key: harness.key.clone(), answer_bytes };
    assert!(ready.send(servers).is_ok());
    ended.await.unwrap();
    serving.abort();
    harness.stop().await;
}

async fn measure(started: oneshot::Receiver<Servers>) {
    let servers = started.await.unwrap();
    let (wallet, echo) = (callers(servers.wallet, &servers.key), callers(servers.echo, &servers.key));
    let (mut gets, mut echoes) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        gets.push(run(&wallet).await);
        echoes.push(run(&echo).await);
    }
    let (gets, echoes) = (medians(gets), medians(echoes));
    println!("answer: {} bytes; medians of {RUNS} runs in turns", servers.answer_bytes);
    println!("{IN_FLIGHT} in flight: {:.0} gets/s, {:.0} echoes/s: ratio {:.2}", gets.0, echoes.0, gets.0 / echoes.0);
    println!("one in flight: p50 {:.1} us a get, {:.1} us an echo: ratio {:.2}", gets.1, echoes.1, gets.1 / echoes.1);
}

fn callers(at: SocketAddr, key: &str) -> Vec<WalletServiceClient<Keyed>> {
    let channel = || Channel::from_shared(format!("http://{at}")).unwrap().connect_lazy();
    (0..CONNECTIONS).map(|_| WalletServiceClient::with_interceptor(channel(), Key::new(key))).collect()
}

/// Requests a second with many in flight, and the median microseconds of one alone.
async fn run(callers: &[WalletServiceClient<Keyed>]) -> (f64, f64) {
    let mut flying = FuturesUnordered::new();
    for n in 0..IN_FLIGHT {
        flying.push(call(callers[n % CONNECTIONS].clone()));
    }
    let (began, mut answered) = (now(), 0_u32);
    while began.elapsed() < RUN {
        let caller = flying.next().await.unwrap();
        answered += 1;
        flying.push(call(caller));
    }
    let rate = f64::from(answered) / began.elapsed().as_secs_f64();
    while flying.next().await.is_some() {}

    let (mut caller, mut took, began) = (callers[0].clone(), Vec::new(), now());
    while began.elapsed() < RUN / 2 {
        let sent = now();
        caller = call(caller).await;
        took.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    (rate, median(took))
}

async fn call(mut caller: WalletServiceClient<Keyed>) -> WalletServiceClient<Keyed> {
    let request =
        v1::GetAccessTokenRequest { user_id: "demo".into(), provider: "sandbox".into(), ..Default::default() };
    caller.get_access_token(request).await.unwrap();
    caller
}

fn medians(runs: Vec<(f64, f64)>) -> (f64, f64) {
    let (rates, p50s): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
    (median(rates), median(p50s))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
    Instant::now()
}

//! Several replicas of the wallet, each a process of its own, on one PostgreSQL database.

use futures_util::StreamExt as _;
use token_wallet::proto::v1;
use token_wallet::sandbox::{DEFAULT_CLIENT_SECRET, Options, Person, Sandbox};
use tonic::Status;

use super::harness::{Engine, until};
use super::postgres;
use super::proxy::Proxy;
use super::server::Server;
use super::service::Wallet;

/// As many people as users, `p0`, `p1` and so on.
pub fn people(users: usize) -> Vec<Person> {
    (0..users).map(|n| Person::named(&format!("p{n}"))).collect()
}

/// Running replicas, and the ways in which they reach the database.
pub struct Cluster {
    pub replicas: Vec<Wallet>,
    /// The n-th replica's; none if they reach the database directly.
    pub proxies: Vec<Proxy>,
    /// The last to go, if it is the cluster's own.
    pub server: Option<Server>,
}

impl Cluster {
    /// So many replicas, with the provider `sandbox` and the redirect URL of the tests. `variables` go to each.
    pub async fn start(replicas: usize, options: Options, variables: &[(&str, &str)]) -> Self {
        Self::of(Wallet::new(Engine::Postgres, options, variables).await, None, replicas, |_| None).await
    }

    /// The same, each replica behind a proxy.
    pub async fn behind_proxies(replicas: usize, options: Options, variables: &[(&str, &str)]) -> Self {
        let first = Wallet::new(Engine::Postgres, options, variables).await;
        Self::of(first, None, replicas, |replica| Some(replica.behind_a_proxy())).await
    }

    /// The same, on a server of its own.
    pub async fn on_a_server(replicas: usize, options: Options, variables: &[(&str, &str)]) -> Self {
        let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
        let database = postgres::database_on(&server.url).await;
        let first = Wallet::on(Some(database), options, variables).await;
        Self::of(first, Some(server), replicas, |replica| Some(replica.behind_a_proxy())).await
    }

    /// The same of a wallet that was not started yet. `proxy` is told of each replica before its start.
    pub async fn of(
        first: Wallet,
        server: Option<Server>,
        count: usize,
        proxy: impl Fn(&Wallet) -> Option<Proxy>,
    ) -> Self {
        let mut replicas: Vec<_> = (1..count).map(|_| first.beside()).collect();
        replicas.insert(0, first);
        let proxies: Vec<_> = replicas.iter().filter_map(proxy).collect();
        // The first one makes the schema.
        replicas[0].start().await;
        replicas[0].configure(DEFAULT_CLIENT_SECRET).await;
        futures_util::future::join_all(replicas[1..].iter_mut().map(Wallet::start)).await;
        Self { replicas, proxies, server }
    }

    pub fn first(&self) -> &Wallet {
        &self.replicas[0]
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.first().sandbox
    }

    /// Links `u0`, `u1` and so on, each to a person of its own: `p0`, `p1` and so on, and lets as much be sent as can be.
    pub async fn with_users(self, users: usize) -> Self {
        let paths = ["requests_per_second", "max_in_flight"].map(str::to_owned).into();
        let limits = v1::UpdateProviderRequest {
            provider: "sandbox".into(),
            requests_per_second: 10_000,
            max_in_flight: 1_000,
            update_mask: Some(prost_types::FieldMask { paths }),
            ..Default::default()
        };
        self.first().providers().update_provider(limits).await.unwrap();
        let replicas = &self.replicas;
        let link =
            |n: usize| async move { replicas[n % replicas.len()].link(&format!("u{n}"), &format!("p{n}")).await };
        futures_util::stream::iter((0..users).map(link)).buffer_unordered(12).for_each(async |_| {}).await;
        self
    }

    /// Makes the tokens at hand of users whose id is `like` this two hours older, for nobody to notice before a get.
    pub async fn expire(&self, like: &str) {
        let sql = "UPDATE grants SET issued_at = issued_at - 7200000, due_at = 0, sweep_at = NULL WHERE user_id LIKE";
        assert!(self.first().database().await.execute(&format!("{sql} '{like}'")).await > 0);
    }

    /// Lets every lease have run out.
    pub async fn end_leases(&self) {
        let sql = "UPDATE grants SET lease_until = lease_until - 20000, attempted_at = attempted_at - 20000
            WHERE lease_until IS NOT NULL";
        assert!(self.first().database().await.execute(sql).await > 0);
    }

    /// Gets of the same user, in turn from each replica.
    pub async fn gets(&self, user: &str, count: usize) -> Vec<Result<v1::GetAccessTokenResponse, Status>> {
        let gets = (0..count).map(|n| self.replicas[n % self.replicas.len()].get(user, "sandbox"));
        futures_util::future::join_all(gets).await
    }

    /// All replicas serve one and the same token of the user, which the provider accepts.
    pub async fn assert_served(&self, user: &str) {
        until(&format!("{user} is served"), async || {
            let got = self.gets(user, self.replicas.len()).await;
            let tokens: Option<Vec<_>> = got.into_iter().map(|got| Some(got.ok()?.access_token)).collect();
            tokens.is_some_and(|tokens| tokens.iter().all(|token| *token == tokens[0] && self.sandbox().accepts(token)))
        })
        .await;
    }

    /// `kill -9`, and the next process of the same replica.
    pub async fn kill_and_restart(&mut self, replica: usize) {
        self.replicas[replica].kill();
        self.replicas[replica].end().await;
        self.replicas[replica].start().await;
    }

    /// Ends the sessions of all replicas in the middle of whatever they do.
    pub async fn end_sessions(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'token-wallet'";
        self.first().database().await.execute(sql).await;
    }

    /// No refresh token was redeemed twice, and no grant was refreshed twice at once.
    pub fn assert_each_redeemed_once(&self) {
        let totals = self.sandbox().totals();
        assert_eq!((totals.reuses, totals.grace_repeats), (0, 0), "{totals:?}");
        assert!(totals.max_overlap <= 1, "{totals:?}");
    }
}

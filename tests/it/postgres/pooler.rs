//! `PgBouncer` in transaction mode between the wallet and PostgreSQL (fault S11): each transaction gets whatever session
//! is free.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reqwest::Url;
use rustix::process::{Signal, getuid};
use tempfile::TempDir;
use token_wallet::config::StoreUrl;
use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Options, Rule};

use crate::support::child::{Running, text};
use crate::support::cluster::{Cluster, people};
use crate::support::harness::{Engine, reason, until};
use crate::support::oracle::wait;
use crate::support::real_time::{say, time_until};
use crate::support::service::Wallet;

const USERS: usize = 12;

/// Each get asks the store.
const COLD: (&str, &str) = ("TOKEN_WALLET__CACHE__MAX_BYTES", "0");

/// Far fewer than the two replicas have connections.
const SESSIONS: usize = 3;

#[tokio::test]
async fn s11_two_replicas_behind_a_pooler_in_transaction_mode_serve_all_and_refresh_each_grant_once() {
    for manner in Manner::all() {
        let (pooler, cluster) = behind_a_pooler(manner, Options { people: people(USERS), ..Options::default() }).await;
        let [first, other] = &cluster.replicas[..] else { panic!("not two") };
        for round in 1..=3 {
            cluster.expire("%").await;
            let replicas = &cluster.replicas;
            let get = |n: usize| async move { replicas[n % 2].get(&user(n / 2 % USERS), "sandbox").await };
            let gets = (0..2 * USERS * 5).map(get);
            let got = futures_util::future::join_all(gets).await;
            assert!(got.iter().all(|got| cluster.sandbox().accepts(&got.as_ref().unwrap().access_token)));
            assert_eq!(cluster.sandbox().totals().redemptions, round * USERS as u64, "{manner:?}");
        }
        cluster.assert_each_redeemed_once();

        let request = v1::ListExternalAccountsRequest { user_id: user(0), ..Default::default() };
        let listed = first.accounts().list_external_accounts(request).await.unwrap().into_inner();
        let account = listed.external_accounts.into_iter().next().unwrap();
        let gone = v1::DeleteExternalAccountRequest { external_account_id: account.id };
        other.accounts().delete_external_account(gone).await.unwrap();
        assert_eq!(reason(&first.get(&user(0), "sandbox").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        until("it is revoked", async || {
            let grants = cluster.sandbox().grants_of("p0");
            grants.iter().all(|grant| grant.ended.is_some())
        })
        .await;
        let told = async |kind| events(other).await.iter().filter(|event| event.r#type() == kind).count();
        assert_eq!(told(v1::EventType::AccountLinked).await, USERS);
        assert_eq!(told(v1::EventType::AccountUnlinked).await, 1);
        assert_eq!(pooler.sessions(first).await, SESSIONS, "{manner:?}: as many as it may have");
    }
}

#[tokio::test]
async fn s11_a_pooler_that_is_killed_while_answers_are_on_their_way_loses_none_and_is_reached_again_by_itself() {
    for manner in Manner::all() {
        let options = Options { people: people(USERS), reuse_revokes_family: true, ..Options::default() };
        let (mut pooler, cluster) = behind_a_pooler(manner, options).await;
        cluster.sandbox().set_faults([Rule::refresh(Effect::Hold).after()]);
        cluster.expire("%").await;
        let replicas = &cluster.replicas;
        let gets = (0..USERS).map(|n| async move { replicas[n % 2].get(&user(n), "sandbox").await });
        let killed = async {
            cluster.sandbox().wait_held(USERS).await;
            pooler.kill();
            cluster.sandbox().release();
            cluster.sandbox().clear_faults();
            for replica in replicas {
                until("it is away", async || replica.get(&user(0), "sandbox").await.is_err()).await;
                let told = replica.get(&user(0), "sandbox").await.unwrap_err();
                assert_eq!(reason(&told), "STORE_UNAVAILABLE");
                wait(&told);
            }
            pooler.restart().await;
            for replica in replicas {
                let took = time_until("it serves", async || replica.get(&user(0), "sandbox").await.is_ok()).await;
                say(format_args!("{manner:?}: served {took:?} after the pooler's return"));
            }
        };
        let (got, ()) = tokio::join!(futures_util::future::join_all(gets), killed);
        for told in got.into_iter().filter_map(Result::err) {
            assert_eq!(reason(&told), "STORE_UNAVAILABLE");
        }
        for n in 0..USERS {
            cluster.assert_served(&user(n)).await;
        }
        assert_eq!(cluster.sandbox().totals().redemptions, USERS as u64, "{manner:?}");
        cluster.assert_each_redeemed_once();
    }
}

/// How a pooler hands out its sessions.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// The one that was used last.
    Last,
    /// In turns.
    Round,
    /// The one that was used last; and it prepares named statements in each that they reach. From version 1.21 on.
    Prepares,
}

impl Manner {
    /// All that the installed version knows.
    fn all() -> Vec<Self> {
        let version = Command::new(program()).arg("--version").output().unwrap();
        let version = text(&version.stdout).split_whitespace().nth(1).unwrap();
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap());
        let mut all = vec![Self::Last, Self::Round];
        if (numbers.next().unwrap(), numbers.next().unwrap()) >= (1, 21) {
            all.push(Self::Prepares);
        }
        all
    }

    const fn settings(self) -> &'static str {
        match self {
            Self::Last => "",
            Self::Round => "server_round_robin = 1\n",
            Self::Prepares => "max_prepared_statements = 100\n",
        }
    }
}

/// Where it is; PATH need not have it.
fn program() -> &'static Path {
    let mut paths =
        ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"].into_iter().map(Path::new);
    paths.find(|path| path.exists()).expect("PgBouncer: scripts/test installs it")
}

/// A running `PgBouncer` before one database; gone, with its files, when this is dropped.
struct Pooler {
    folder: TempDir,
    owner: (u32, u32),
    process: Option<Running>,
    url: String,
}

impl Pooler {
    async fn start(store: &StoreUrl, manner: Manner) -> Self {
        let server = Url::parse(store.expose()).unwrap();
        let host = server.query_pairs().find(|(key, _)| key == "host").map(|(_, host)| host.into_owned());
        let host = host.unwrap_or_else(|| server.host_str().unwrap().to_owned());
        // It runs as whoever may reach the server's socket: `PgBouncer` does not run as root either.
        let owner = std::fs::metadata(&host).map_or((65_534, 65_534), |folder| (folder.uid(), folder.gid()));
        let folder = tempfile::Builder::new().prefix("pooler").tempdir_in("/tmp").unwrap();
        let here = folder.path().to_str().unwrap();
        let database = server.path().trim_start_matches('/');
        let mut settings =
            format!("[databases]\n{database} = dbname={database} host={host} user={}", server.username());
        write!(settings, " port={} password='{}'", server.port().unwrap_or(5432), unescaped(&server)).unwrap();
        write!(
            settings,
            "\n[pgbouncer]\nunix_socket_dir = {here}\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = {SESSIONS}\n{}",
            manner.settings()
        )
        .unwrap();
        std::fs::write(folder.path().join("settings"), settings).unwrap();
        let mut url = server.clone();
        url.set_host(Some("localhost")).unwrap();
        url.set_port(Some(6432)).unwrap();
        url.query_pairs_mut().clear().append_pair("host", here);
        let mut pooler = Self { url: url.into(), owner, process: None, folder };
        if getuid().is_root() {
            for path in [pooler.folder.path(), &pooler.path("settings")] {
                chown(path, Some(owner.0), Some(owner.1)).unwrap();
            }
        }
        pooler.restart().await;
        pooler
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn restart(&mut self) {
        let mut command = Command::new(program());
        command.arg("-q").arg(self.path("settings")).current_dir("/").stdin(Stdio::null());
        command.stderr(File::create(self.path("log")).unwrap());
        if getuid().is_root() {
            command.uid(self.owner.0).gid(self.owner.1);
        }
        self.process = Some(Running(command.spawn().unwrap()));
        let socket = self.path(".s.PGSQL.6432");
        until("the pooler listens", async || tokio::net::UnixStream::connect(&socket).await.is_ok()).await;
    }

    fn kill(&mut self) {
        assert_eq!(self.process.take().unwrap().end_by(Signal::KILL), None);
        std::fs::remove_file(self.path(".s.PGSQL.6432")).unwrap();
    }

    /// How many sessions of the server the wallet's database has through it.
    async fn sessions(&self, wallet: &Wallet) -> usize {
        let sql = "SELECT COUNT(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'token-wallet'";
        usize::try_from(wallet.database().await.number(sql).await).unwrap()
    }
}

/// A URL's password as it is.
fn unescaped(url: &Url) -> String {
    let password = url.password().unwrap_or_default();
    let pair = format!("p={}", password.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().unwrap().1.into_owned()
}

/// Two replicas, with the users of these tests.
async fn behind_a_pooler(manner: Manner, options: Options) -> (Pooler, Cluster) {
    let first = Wallet::new(Engine::Postgres, options, &[COLD]).await;
    let pooler = Pooler::start(first.store(), manner).await;
    let led = |replica: &Wallet| {
        replica.reach_by(&pooler.url);
        None
    };
    let cluster = Cluster::of(first, None, 2, led).await;
    (pooler, cluster.with_users(USERS).await)
}

fn user(n: usize) -> String {
    format!("u{n}")
}

/// All events so far.
async fn events(wallet: &Wallet) -> Vec<v1::Event> {
    let request = v1::ListEventsRequest { page_size: 200, ..Default::default() };
    wallet.event_log().list_events(request).await.unwrap().into_inner().events
}

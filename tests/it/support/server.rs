//! A PostgreSQL server of a test's own, which can be crashed.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::postgres::SERVER;

/// Goes, with its files, when this is dropped.
pub struct Server {
    /// Names it, as [`super::postgres::database_on`] wants it.
    pub url: String,
    /// Whose end it lives to.
    script: Child,
    /// Where its small disk is.
    pub small: Option<TempDir>,
}

/// A server that follows another one, and can take its place. Dropped before that one, whose folder its own is in.
pub struct Standby {
    pub url: String,
}

/// Mounts a disk of $2 mebibytes at $1 and runs the other arguments, as the same user, where nobody else sees it.
const SMALL_DISK: &str = r#"
    as_root=(--mount) as_before=(env)
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(--user --map-root-user --mount)
        as_before=(unshare --user --map-user="$(id -u)" --map-group="$(id -g)" --)
    fi
    exec unshare "${as_root[@]}" -- bash -euc 'mount -t tmpfs -o size="$2"m,mode=0777 none "$1"; exec "${@:3}"' \
        bash "$1" "$2" "${as_before[@]}" "${@:3}"
"#;

/// As whom the server in the folder $1 runs, and where its programs are.
const PRELUDE: &str = r#"
    cd "$1"
    programs=$(dirname "$(cut -d " " -f 1 data/postmaster.opts)")
    as_owner=
    if [ "$(id -u)" -eq 0 ]; then as_owner="runuser -u $(stat -c %U data) --"; fi
"#;

/// Runs `pg_ctl` of the server in the folder $1 with the other arguments, as the folder's owner.
const PG_CTL: &str = r#"exec $as_owner "$programs/pg_ctl" -D data -s "${@:2}""#;

/// Makes a copy of the server in the folder $1, which follows it, and starts it.
const STANDBY: &str = r#"
    $as_owner mkdir standby
    $as_owner "$programs/pg_basebackup" -h "$1" -U postgres -D standby/data -R -c fast
    cd standby
    echo "unix_socket_directories = '$PWD'" | $as_owner tee -a data/postgresql.conf
    exec $as_owner "$programs/pg_ctl" -D data -s -w -l data/server.log start
"#;

impl Server {
    /// Starts one, with scripts/with-postgres.
    pub fn start() -> Self {
        Self::started_by(Command::new(with_postgres()))
    }

    /// The same, with a tablespace `small` on a disk of so many mebibytes: a file system that nobody else sees.
    pub fn with_small_disk(mebibytes: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("small").tempdir_in("/tmp").unwrap();
        let mut script = Command::new("bash");
        script.args(["-euc", SMALL_DISK, "bash"]).arg(folder.path()).arg(mebibytes.to_string()).arg(with_postgres());
        let mut server = Self::started_by(script);
        server.small = Some(folder);
        server
    }

    fn started_by(mut script: Command) -> Self {
        script.args(["bash", "-c", &format!("echo \"${SERVER}\"; cat")]);
        script.env_remove(SERVER).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(!url.is_empty(), "no server started");
        Self { url: url.trim_end().to_owned(), script, small: None }
    }

    /// Ends it as a crash does: nothing is flushed, nobody is told.
    pub async fn crash(&self) {
        self.pg_ctl(&["stop", "-m", "immediate"]).await;
    }

    /// Starts it again; it recovers by itself, and is ready when this returns.
    pub async fn restart(&self) {
        self.pg_ctl(&["start", "-w", "-l", "data/server.log"]).await;
    }

    /// Starts a server that follows this one, which must be told before that others may.
    pub async fn standby(&self) -> Standby {
        let home = home(&self.url);
        run(STANDBY, home, &[]).await;
        Standby { url: format!("{}/standby", self.url) }
    }

    async fn pg_ctl(&self, arguments: &[&str]) {
        run(PG_CTL, home(&self.url), arguments).await;
    }
}

impl Standby {
    /// Makes it a server that follows nobody; it takes changes when this returns.
    pub async fn promote(&self) {
        run(PG_CTL, home(&self.url), &["promote", "-w"]).await;
    }
}

fn with_postgres() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-postgres")
}

/// The folder with a server's socket and data.
pub fn home(url: &str) -> &str {
    url.split_once("host=").unwrap().1
}

async fn run(script: &str, home: &str, arguments: &[&str]) {
    let mut command = command(script, home, arguments);
    let ended = tokio::task::spawn_blocking(move || command.status()).await.unwrap();
    assert!(ended.unwrap().success(), "{script} {arguments:?}");
}

fn command(script: &str, home: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euc", &format!("{PRELUDE}{script}"), "bash", home]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = command(PG_CTL, home(&self.url), &["stop", "-m", "immediate"]).status();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The script's command reads to the end of its input.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

//! A PostgreSQL server of a test's own, which can be crashed.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::postgres::SERVER;

/// Goes, with its files, when this is dropped.
pub struct Server {
    /// Names it, as [`super::postgres::database_on`] wants it.
    pub url: String,
    /// Whose end it lives to.
    script: Child,
}

/// Runs `pg_ctl` of the server in the folder $1 with the other arguments, as the folder's owner.
const PG_CTL: &str = r#"
    cd "$1"
    programs=$(dirname "$(cut -d " " -f 1 data/postmaster.opts)")
    as_owner=
    if [ "$(id -u)" -eq 0 ]; then as_owner="runuser -u $(stat -c %U data) --"; fi
    exec $as_owner "$programs/pg_ctl" -D data -s "${@:2}"
"#;

impl Server {
    /// Starts one, with scripts/with-postgres.
    pub fn start() -> Self {
        let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-postgres"));
        script.args(["bash", "-c", &format!("echo \"${SERVER}\"; cat")]);
        script.env_remove(SERVER).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(!url.is_empty(), "no server started");
        Self { url: url.trim_end().to_owned(), script }
    }

    /// Ends it as a crash does: nothing is flushed, nobody is told.
    pub async fn crash(&self) {
        self.pg_ctl(&["stop", "-m", "immediate"]).await;
    }

    /// Starts it again; it recovers by itself, and is ready when this returns.
    pub async fn restart(&self) {
        self.pg_ctl(&["start", "-w", "-l", "data/server.log"]).await;
    }

    async fn pg_ctl(&self, arguments: &[&str]) {
        let home = self.url.split_once("host=").unwrap().1;
        let mut command = Command::new("bash");
        command.args(["-euc", PG_CTL, "pg_ctl", home]).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let ended = tokio::task::spawn_blocking(move || command.status()).await.unwrap();
        assert!(ended.unwrap().success(), "pg_ctl {arguments:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The script's command reads to the end of its input.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

//! `sandbox`: the OAuth provider of our own, alone, for other people's tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::output;
use super::stop::Stop;
use crate::sandbox::{self, Client, DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Options, Person, RedirectRule, Rotation};

const NOTES: &str = "\
Examples:
  token-wallet sandbox --token-ttl 20s --rotation grace=30s
  token-wallet sandbox --addr 127.0.0.1:0 --json --person ada --person grace

Client id \"sandbox\", client secret \"sandbox-secret\". A script decides by posting person=NAME&decision=approve as a
form to the authorization URL.

It misbehaves on demand, for one person, a share of the grants, a number of times, or all: errors, outages, lost
answers, hanging, malformed and endless bodies, odd tokens. Faults are rules, switched over HTTP while it runs:

  curl -X POST http://127.0.0.1:9000/_sandbox/faults -d '{\"on\": \"refresh\", \"person\": \"alice\", \"times\": 1,
    \"do\": {\"answer\": {\"status\": 400, \"error\": \"invalid_grant\"}}}'

  /_sandbox/faults     GET, POST one more, PUT all, DELETE
  /_sandbox/settings   GET, PUT: lifetimes, rotation, client secrets
  /_sandbox/requests   GET, DELETE: every request, secrets as fingerprints
  /_sandbox/grants     GET: what was redeemed how often; POST /NAME/revoke: a person withdraws

docs/sandbox.md shows every fault and setting with its curl line.";

/// Run an OAuth 2.0 and OpenID Connect provider for tests: made-up people, no passwords.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    addr: SocketAddr,

    /// The base URL to announce, if it is reached by another address
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,

    /// How long an access token lives
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    token_ttl: Duration,

    /// What becomes of a redeemed refresh token: always, never, every=NUMBER or grace=DURATION
    #[arg(long, value_name = "RULE", default_value = "always")]
    rotation: Rotation,

    /// End the whole grant if a dead refresh token comes again
    #[arg(long)]
    reuse_revokes_family: bool,

    /// Somebody who can be chosen; may be repeated [default: demo, alice, bob]
    #[arg(long, value_name = "NAME")]
    person: Vec<String>,

    /// A redirect URI, compared exactly; may be repeated [default: anything on loopback]
    #[arg(long, value_name = "URI")]
    redirect_uri: Vec<String>,

    /// A file that keeps grants and the signing key across starts
    #[arg(long, value_name = "FILE")]
    state_file: Option<PathBuf>,

    /// Print one JSON line when ready
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut stop = Stop::listen()?;
        let json = self.json;
        let sandbox = sandbox::start(self.into_options()).await.context("the sandbox cannot start")?;
        if json {
            output::line(json!({ "sandbox": sandbox.base_url() }))?;
        } else {
            output::line(sandbox.base_url())?;
        }
        stop.told().await;
        sandbox.shutdown().await;
        Ok(())
    }

    fn into_options(self) -> Options {
        let defaults = Options::default();
        let people = self.person.iter().map(|name| Person::named(name));
        let redirect = match self.redirect_uri {
            uris if uris.is_empty() => RedirectRule::Loopback,
            uris => RedirectRule::Exact(uris),
        };
        Options {
            addr: self.addr,
            base_url: self.base_url,
            token_ttl: self.token_ttl,
            rotation: self.rotation,
            reuse_revokes_family: self.reuse_revokes_family,
            people: if self.person.is_empty() { defaults.people } else { people.collect() },
            clients: vec![Client::confidential(DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, redirect)],
            state_file: self.state_file,
            ..Options::default()
        }
    }
}

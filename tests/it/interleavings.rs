//! What befalls one account at once: refreshes, unlinking, consents anew and gets, in every order that anybody thought
//! of. A row is a script; what is left at the provider and what callers are told is the same whatever the engine.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, future, stream};
use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Options, Person, Reply, Rule};
use tonic::Status;

use crate::support::harness::{APP_URL, Engine, Harness, Replica, on_both_engines, reason};

/// The token that the link gave is dead by then.
const DEAD: Duration = Duration::from_hours(2);

const USER: &str = "u";
const ACCOUNT_OF: &str = "p0";
const OTHER: &str = "p1";

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The token dies, and a get has it refreshed; the provider holds the request before it does anything.
    Spend,
    /// The same, but the provider has rotated, and holds its answer.
    SpendRotated,
    /// The same, but the answer is lost.
    SpendLost,
    /// The provider lets go of everything; the get is answered this.
    Release(&'static str),
    /// A get, and what it is told.
    Get(&'static str),
    /// A get that says that the last token was rejected.
    Reject(&'static str),
    /// The account that was linked last is unlinked.
    Unlink,
    /// By two at once.
    UnlinkTwice,
    /// A link from its beginning to its end, with this person, and what its end is told.
    Link(&'static str, &'static str),
    /// A consent anew is asked for; the person has not answered yet.
    Reauthorize,
    /// This person consents to what was asked for last: the app has its ticket.
    Consent(&'static str),
    /// The app completes the oldest ticket that it has, and what it is told.
    Complete(&'static str),
    /// The person says no to what was asked for last.
    Cancel,
    /// The person ends it all at the provider.
    Withdraw(&'static str),
    /// Profiles and revocations are not answered until the release.
    HoldRevocations,
    /// No profile is shown.
    HideProfiles,
    /// The process ends and another begins.
    Restart,
    /// The jobs run, until nothing is left to do.
    Settle,
}

use Step::{
    Cancel, Complete, Consent, Get, HideProfiles, HoldRevocations, Link, Reauthorize, Reject, Release, Restart, Settle,
    Spend, SpendLost, SpendRotated, Unlink, UnlinkTwice, Withdraw,
};

const LINKED: &str = "OK";
const GONE: &str = "ACCOUNT_NOT_LINKED";

/// What a script ends with.
struct Row {
    name: &'static str,
    script: &'static [Step],
    /// What a get is told at the end, and how many consents of the two people live at the provider.
    told: &'static str,
    alive: (usize, usize),
}

const ROWS: &[Row] = &[
    Row {
        name: "unlinked while the provider looks at a refresh",
        script: &[Spend, Unlink, Get(GONE), Release(""), Get(GONE)],
        told: GONE,
        alive: (0, 0),
    },
    Row {
        name: "unlinked while the rotated token is on its way",
        script: &[SpendRotated, Unlink, Get(GONE), Release(""), Get(GONE)],
        told: GONE,
        alive: (0, 0),
    },
    Row {
        name: "unlinked when the rotated token was lost",
        script: &[SpendLost, Unlink, Get(GONE)],
        told: GONE,
        alive: (0, 0),
    },
    Row {
        name: "unlinked and linked again at once",
        script: &[Unlink, Link(ACCOUNT_OF, LINKED), Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "unlinked and linked to somebody else",
        script: &[Unlink, Link(OTHER, LINKED), Get("OK")],
        told: "OK",
        alive: (0, 1),
    },
    Row {
        name: "unlinked and linked again under a refresh",
        script: &[SpendRotated, Unlink, Link(ACCOUNT_OF, LINKED), Get("OK"), Release(""), Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "linked again under a refresh",
        script: &[SpendRotated, Link(ACCOUNT_OF, LINKED), Get("OK"), Release(""), Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "consent anew under a refresh that the provider has not looked at",
        script: &[Spend, Reauthorize, Consent(ACCOUNT_OF), Complete("OK"), Get("OK"), Release(""), Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "consent anew under a refresh, then unlinked",
        script: &[SpendRotated, Reauthorize, Consent(ACCOUNT_OF), Complete("OK"), Unlink, Get(GONE), Release("")],
        told: GONE,
        alive: (0, 0),
    },
    Row {
        name: "unlinked while a consent anew waits for the person",
        script: &[Reauthorize, Unlink, Consent(ACCOUNT_OF), Complete("ACCOUNT_NOT_FOUND"), Get(GONE)],
        told: GONE,
        alive: (0, 0),
    },
    Row {
        name: "unlinked and linked again while a consent anew waits for the person",
        script: &[
            Reauthorize,
            Unlink,
            Link(ACCOUNT_OF, LINKED),
            Consent(ACCOUNT_OF),
            Complete("ACCOUNT_NOT_FOUND"),
            Get("OK"),
        ],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "two consents anew, both given",
        script: &[
            Reauthorize,
            Consent(ACCOUNT_OF),
            Reauthorize,
            Consent(ACCOUNT_OF),
            Complete("OK"),
            Get("OK"),
            Complete("OK"),
            Get("OK"),
        ],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "the provider ends the grant while a consent anew waits for the app",
        script: &[
            Get("OK"),
            Reauthorize,
            Withdraw(ACCOUNT_OF),
            Reject("PROVIDER_UNAVAILABLE"),
            Consent(ACCOUNT_OF),
            Complete("OK"),
            Get("OK"),
        ],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "a consent anew is cancelled under a refresh",
        script: &[SpendRotated, Reauthorize, Cancel, Release("OK"), Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "somebody else consents anew under a refresh",
        script: &[SpendRotated, Reauthorize, Consent(OTHER), Complete("ACCOUNT_MISMATCH"), Release("OK"), Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "linked again while the revocation is on its way",
        script: &[HoldRevocations, Unlink, Link(ACCOUNT_OF, LINKED), Get("OK"), Release(""), Settle, Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row { name: "unlinked by two at once", script: &[UnlinkTwice, Get(GONE)], told: GONE, alive: (0, 0) },
    Row {
        name: "unlinked, and the process ends before it could revoke",
        script: &[HoldRevocations, Unlink, Restart, Get(GONE), Release("")],
        told: GONE,
        alive: (0, 0),
    },
    Row {
        name: "unlinked while the answer to a code waits for the profile",
        script: &[
            Reauthorize,
            Consent(ACCOUNT_OF),
            HideProfiles,
            Complete("PROVIDER_UNAVAILABLE"),
            Unlink,
            Release(""),
            Settle,
            Get(GONE),
        ],
        told: GONE,
        alive: (0, 0),
    },
    Row {
        name: "a token is rejected under a consent anew",
        script: &[Get("OK"), Reauthorize, Consent(ACCOUNT_OF), Complete("OK"), Reject("OK"), Get("OK")],
        told: "OK",
        alive: (1, 0),
    },
    Row {
        name: "the process ends with a refresh under way, and the account is unlinked before anything else",
        script: &[SpendRotated, Restart, Unlink, Get(GONE), Release("")],
        told: GONE,
        alive: (0, 0),
    },
];

type Answer = Result<v1::GetAccessTokenResponse, Status>;

/// One user, two people at the provider, and what the app knows.
struct Play {
    harness: Harness,
    account: String,
    /// The URL that the person was last sent to.
    asked: String,
    tickets: Vec<String>,
    waiting: Vec<tokio::task::JoinHandle<Answer>>,
    token: String,
}

on_both_engines! {
    async fn n3_whatever_befalls_an_account_at_once_nothing_dead_is_served_and_nothing_left_alive(engine) {
        let plays = stream::iter(ROWS).map(|row| async move {
            let played = AssertUnwindSafe(async { Play::new(engine).await.run(row).await }).catch_unwind().await;
            played.err().map(|_| row.name)
        });
        let failed: Vec<_> = plays.buffer_unordered(6).filter_map(future::ready).collect().await;
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

impl Play {
    async fn new(engine: Engine) -> Self {
        let people = [ACCOUNT_OF, OTHER].map(Person::named).into();
        let harness = Harness::with(engine, Options { people, ..Options::default() }).await;
        let account = harness.link(USER, ACCOUNT_OF).await.id;
        Self { harness, account, asked: String::new(), tickets: Vec::new(), waiting: Vec::new(), token: String::new() }
    }

    async fn run(mut self, row: &Row) {
        for (place, step) in row.script.iter().enumerate() {
            self.step(*step, &format!("{}, step {place}: {step:?}", row.name)).await;
        }
        self.harness.sandbox.clear_faults();
        self.settle().await;
        let alive =
            |person| self.harness.sandbox.grants_of(person).iter().filter(|grant| grant.ended.is_none()).count();
        assert_eq!((alive(ACCOUNT_OF), alive(OTHER)), row.alive, "{}", row.name);
        assert_eq!(self.harness.told(USER).await, row.told, "{}", row.name);
        self.harness.assert_each_redeemed_once();
    }

    async fn step(&mut self, step: Step, at: &str) {
        let sandbox = &self.harness.sandbox;
        match step {
            Spend => self.spend(Rule::refresh(Effect::Hold)).await,
            SpendRotated => self.spend(Rule::refresh(Effect::Hold).after()).await,
            SpendLost => {
                sandbox.set_faults([Rule::refresh(Effect::Close).after().times(1)]);
                self.harness.pass(DEAD);
                assert_eq!(self.harness.told(USER).await, "PROVIDER_UNAVAILABLE", "{at}");
            }
            Release(expected) => {
                sandbox.clear_faults();
                for waiting in self.waiting.drain(..) {
                    let told = told(&waiting.await.unwrap());
                    assert!(expected.is_empty() || told == expected, "{at}: {told}");
                }
            }
            Get(expected) => assert_eq!(self.get(v1::GetAccessTokenRequest::default()).await, expected, "{at}"),
            Reject(expected) => {
                let rejected_access_token = self.token.clone();
                let request = v1::GetAccessTokenRequest { rejected_access_token, ..Default::default() };
                assert_eq!(self.get(request).await, expected, "{at}");
            }
            Unlink => unlink(&self.harness, &self.account).await,
            UnlinkTwice => {
                tokio::join!(unlink(&self.harness, &self.account), unlink(&self.harness, &self.account));
            }
            Link(person, expected) => {
                let ticket = self.harness.ticket(USER, person).await;
                let linked = self.harness.complete(USER, &ticket).await;
                assert_eq!(told(&linked), expected, "{at}");
                self.account = linked.unwrap().external_account.unwrap().id;
            }
            Reauthorize => {
                let request = v1::StartReauthorizationRequest {
                    external_account_id: self.account.clone(),
                    redirect_url: APP_URL.into(),
                    ..Default::default()
                };
                let started = self.harness.accounts().start_reauthorization(request).await.unwrap().into_inner();
                self.asked = started.authorization_url;
            }
            Consent(person) => {
                let callback = self.harness.decide(&self.asked, person, "approve").await;
                self.tickets.push(self.harness.ticket_of(callback).await);
            }
            Cancel => {
                let callback = self.harness.decide(&self.asked, ACCOUNT_OF, "cancel").await;
                self.harness.http.get(callback).send().await.unwrap();
            }
            Complete(expected) => {
                let ticket = self.tickets.remove(0);
                assert_eq!(told(&self.harness.complete(USER, &ticket).await), expected, "{at}");
            }
            Withdraw(person) => {
                sandbox.revoke(person).unwrap();
                // No token younger than this is refreshed because it was rejected.
                self.harness.pass(Duration::from_mins(1));
            }
            HoldRevocations => self.fault(Rule::revoke(Effect::Hold)),
            HideProfiles => self.fault(Rule::userinfo(Effect::Answer(Reply::new(503)))),
            Restart => self.harness.restart().await,
            Settle => self.settle().await,
        }
    }

    /// Has a get wait for a refresh that the provider holds.
    async fn spend(&mut self, rule: Rule) {
        self.harness.sandbox.set_faults([rule]);
        self.harness.pass(DEAD);
        let replica: Replica = self.harness.replica();
        self.waiting.push(tokio::spawn(async move { replica.get(USER).await }));
        self.harness.sandbox.wait_held(1).await;
    }

    fn fault(&self, rule: Rule) {
        self.harness.sandbox.add_fault(rule);
    }

    async fn get(&mut self, request: v1::GetAccessTokenRequest) -> String {
        let answer = self.harness.get_with(v1::GetAccessTokenRequest { user_id: USER.into(), ..request }).await;
        if let Ok(token) = &answer {
            assert!(self.harness.is_accepted(&token.access_token).await, "a dead token was given");
            self.token.clone_from(&token.access_token);
        }
        told(&answer)
    }

    async fn settle(&self) {
        self.harness.live(Duration::from_mins(3), Duration::from_secs(30)).await;
    }
}

async fn unlink(harness: &Harness, account: &str) {
    let request = v1::DeleteExternalAccountRequest { external_account_id: account.into() };
    harness.accounts().delete_external_account(request).await.unwrap();
}

fn told<T>(answer: &Result<T, Status>) -> String {
    answer.as_ref().map_or_else(reason, |_| "OK".to_owned())
}

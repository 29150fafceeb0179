//! The users, the wallet and the providers, and what happens to them.
#![expect(clippy::print_stderr, reason = "a run tells what it did, and one that fails what it saw")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use token_wallet::clock::Hand;
use token_wallet::proto::v1;
use token_wallet::sandbox::{Client, Effect, Options, Person, RedirectRule, Rule};

use super::plan::{KINDS, Kind, Plan, kind_of};
use super::weather::Weather;
use crate::support::database::Database;
use crate::support::dice::Dice;
use crate::support::harness::{Engine, Harness};
use crate::support::outage::Outage;

const SECRET: &str = "soak-secret";

/// So many links of a provider are begun at once: two requests each, within a second's budget.
const LINKS: usize = 16;

/// What waits for a provider's budget waits for the clock. If nothing else happens for so long in real time, a second
/// passes.
const PATIENCE: Duration = Duration::from_millis(40);

/// How often, in minutes, somebody asks for a token; the jobs run if anything is due; they run in any case.
const ASKED_EVERY: u64 = 6;
const JOBS_EVERY: u64 = 2;
const UPKEEP_EVERY: u64 = 30;

/// Refusals by mistake that may stand at once.
const BLIPS: usize = 200;

pub struct Town {
    pub plan: Plan,
    pub engine: Engine,
    pub harness: Harness,
    pub database: Database,
    pub users: Vec<User>,
    pub weather: Vec<Weather>,
    pub dice: Dice,
    /// Simulated minutes since the first.
    pub minute: u64,
    pub ledger: Ledger,
    began: Duration,
    /// Refusals by mistake that wait for their grant: the rule, and whose.
    blips: VecDeque<(u64, usize)>,
    since: Instant,
}

/// What the checks remember from minute to minute.
#[derive(Default)]
pub struct Ledger {
    /// Users whose grant is dead, as far as was seen and judged.
    pub dead: HashSet<usize>,
    /// By grant, the fences that were last seen.
    pub fences: HashMap<String, (i64, i64)>,
    /// By provider: how much of a second's budget was used, and when.
    pub spent: HashMap<String, (f64, i64)>,
    /// When the first grant is due.
    pub due_at: i64,
    pub gets: u64,
    pub tokens: u64,
    pub restarts: u64,
    pub outages: u64,
    pub storms: u64,
    pub revoked: u64,
    pub unlinked: u64,
    pub relinked: u64,
    pub reports: u64,
    pub steps: u64,
    pub requests: u64,
}

/// Somebody with an account at one provider.
pub struct User {
    pub name: String,
    pub person: String,
    pub kind: usize,
    /// Their account; none while it is unlinked.
    pub account: Option<String>,
    /// Whether a token of the present grant was reported as rejected.
    pub reported: bool,
}

impl Town {
    /// A wallet with all its users linked.
    pub async fn found(engine: Engine, plan: Plan) -> Self {
        #[expect(clippy::disallowed_methods, reason = "how long it really took")]
        let since = Instant::now();
        let users = (0..plan.grants).map(|number| User {
            name: format!("user-{number}"),
            person: format!("person-{number}"),
            kind: kind_of(number),
            account: None,
            reported: false,
        });
        let users = users.collect::<Vec<_>>();
        let clients = KINDS.iter().map(|kind| Client::confidential(kind.slug, SECRET, RedirectRule::Loopback));
        let options = Options {
            people: users.iter().map(|user| Person::named(&user.person)).collect(),
            clients: clients.chain(Options::default().clients).collect(),
            ..Options::default()
        };
        let harness = Harness::with(engine, options).await;
        let mut settings = harness.sandbox.settings();
        settings.clients = KINDS.iter().map(|kind| (kind.slug.to_owned(), kind.manners())).collect();
        (settings.seed, settings.log_limit) = (plan.seed, 1_000_000);
        harness.sandbox.set_settings(settings);
        for kind in &KINDS {
            let request = v1::CreateProviderRequest {
                slug: slug(engine, kind),
                catalog_entry: kind.entry.into(),
                client_id: kind.slug.into(),
                client_secret: SECRET.into(),
                ..Default::default()
            };
            harness.providers().create_provider(request).await.unwrap();
        }
        let database = harness.database().await;
        let (began, weather) = (harness.clock.boot(), KINDS.iter().map(|_| Weather::default()).collect());
        let dice = Dice::new(plan.seed);
        let (ledger, blips) = (Ledger::default(), VecDeque::new());
        let mut town =
            Self { plan, engine, harness, database, users, weather, dice, minute: 0, ledger, began, blips, since };
        town.settle().await;
        town.began = town.harness.clock.boot();
        town
    }

    /// Links everybody.
    async fn settle(&mut self) {
        let mut waiting = vec![Vec::new(); KINDS.len()];
        for (number, user) in self.users.iter().enumerate() {
            waiting[user.kind].push(number);
        }
        while waiting.iter().any(|of_kind| !of_kind.is_empty()) {
            let next = waiting.iter_mut().flat_map(|all| all.split_off(all.len().saturating_sub(LINKS)));
            let next = next.collect::<Vec<_>>();
            let accounts = join_all(next.iter().map(|number| self.link(&self.users[*number]))).await;
            for (number, account) in next.into_iter().zip(accounts) {
                self.users[number].account = Some(account);
            }
            self.harness.hand.advance(Duration::from_secs(1));
            self.harness.sandbox.clear_requests();
        }
        eprintln!("{} users are linked after {:.1?}", self.users.len(), self.since.elapsed());
    }

    /// A whole link; the account's id.
    async fn link(&self, user: &User) -> String {
        let ticket = self.harness.ticket_at(&self.slug(user), &user.name, &user.person).await;
        self.harness.complete(&user.name, &ticket).await.unwrap().external_account.unwrap().id
    }

    /// The user's provider.
    pub fn slug(&self, user: &User) -> String {
        slug(self.engine, &KINDS[user.kind])
    }

    /// One more minute, with what it brings.
    pub async fn minute(&mut self) {
        self.pass();
        let held = self.happen().await;
        if held || self.is_work_due() {
            self.jobs(held).await;
        }
        if self.minute.is_multiple_of(ASKED_EVERY) {
            self.ask().await;
        }
        self.check().await;
        if self.minute.is_multiple_of(60) {
            self.check_each_grant().await;
        }
    }

    /// No more faults; what is left of them heals within an hour.
    pub async fn calm_down(&mut self) {
        let sandbox = &self.harness.sandbox;
        sandbox.clear_faults();
        for weather in &mut self.weather {
            weather.pass(u64::MAX, sandbox);
            weather.shaken(self.minute);
        }
        for _ in 0..60 {
            self.pass();
            self.jobs(false).await;
            self.check().await;
        }
    }

    /// To the next full minute.
    fn pass(&mut self) {
        self.minute += 1;
        let next = self.began + Duration::from_mins(self.minute);
        self.harness.hand.advance(next.saturating_sub(self.harness.clock.boot()));
    }

    /// What this minute brings. True if requests are held at a provider.
    async fn happen(&mut self) -> bool {
        let mut held = false;
        for (kind, weather) in KINDS.iter().zip(&mut self.weather) {
            weather.pass(self.minute, &self.harness.sandbox);
            if self.dice.once_in(1_500) {
                held |= weather.turn(self.minute, kind.slug, &mut self.dice, &self.harness.sandbox);
                self.ledger.storms += 1;
            }
        }
        // More happens where more people are.
        for _ in 0..self.plan.grants.div_ceil(1_000) {
            self.people().await;
        }
        if !held && self.dice.once_in(1_400) {
            self.restart().await;
        }
        if self.dice.once_in(20_000) {
            self.step_forward();
        }
        if !held && self.dice.once_in(20_000) {
            self.step_back().await;
        }
        held
    }

    /// What people do, and what is done to some of them.
    async fn people(&mut self) {
        if self.dice.once_in(200) {
            self.blip();
        }
        if self.dice.once_in(400) {
            let user = self.anybody();
            self.harness.sandbox.revoke(&self.users[user].person).unwrap();
            self.ledger.revoked += 1;
        }
        if self.dice.once_in(700) {
            let user = self.anybody();
            self.unlink(user).await;
        }
        if self.dice.once_in(60) {
            self.relink().await;
        }
    }

    pub fn anybody(&mut self) -> usize {
        usize::try_from(self.dice.below(self.users.len() as u64)).unwrap()
    }

    /// The next refresh of somebody is refused by mistake, once.
    fn blip(&mut self) {
        let user = self.anybody();
        if self.blips.iter().any(|(_, whose)| *whose == user) {
            return;
        }
        if self.blips.len() == BLIPS
            && let Some((oldest, _)) = self.blips.pop_front()
        {
            self.harness.sandbox.clear_fault(oldest);
        }
        let rule = Rule::refresh(Effect::error(400, "invalid_grant")).person(&self.users[user].person).times(1);
        self.blips.push_back((self.harness.sandbox.add_fault(rule), user));
    }

    async fn unlink(&mut self, user: usize) {
        let Some(account) = self.users[user].account.take() else { return };
        let request = v1::DeleteExternalAccountRequest { external_account_id: account };
        self.harness.accounts().delete_external_account(request).await.unwrap();
        self.ledger.dead.remove(&user);
        self.ledger.unlinked += 1;
    }

    /// Somebody without a grant links again, if their provider is well.
    async fn relink(&mut self) {
        let gone = (0..self.users.len()).filter(|user| {
            let User { account, kind, .. } = &self.users[*user];
            (account.is_none() || self.ledger.dead.contains(user)) && self.weather[*kind].is_calm(self.minute)
        });
        let gone = gone.collect::<Vec<_>>();
        if gone.is_empty() {
            return;
        }
        let user = *self.dice.pick(&gone);
        let account = self.harness.in_time(self.link(&self.users[user])).await;
        let relinked = &mut self.users[user];
        (relinked.account, relinked.reported) = (Some(account), false);
        self.ledger.dead.remove(&user);
        self.ledger.relinked += 1;
    }

    /// A new process, which knows nothing but what is stored.
    async fn restart(&mut self) {
        let hand = self.harness.hand.clone();
        ticking(&hand, self.harness.restart()).await;
        self.ledger.restarts += 1;
        // Its budget is new, too.
        self.ledger.spent.clear();
    }

    /// The wall clock is set forward: all at once is due.
    fn step_forward(&mut self) {
        let by = Duration::from_mins(self.dice.between(10, 240));
        self.harness.hand.set(self.harness.clock.wall().plus(by));
        self.stepped();
    }

    /// The wall clock is set back, and a new process knows nothing of the time before.
    async fn step_back(&mut self) {
        let by = Duration::from_secs(self.dice.between(60, 600));
        self.harness.hand.set(self.harness.clock.wall().minus(by));
        self.harness.clock = self.harness.clock.afresh();
        self.restart().await;
        self.stepped();
    }

    fn stepped(&mut self) {
        self.ledger.steps += 1;
        self.weather.iter_mut().for_each(|weather| weather.shaken(self.minute));
    }

    /// Whether the wallet's jobs have anything to do: most minutes they have not, and the tests have minutes.
    fn is_work_due(&self) -> bool {
        let due = self.minute.is_multiple_of(JOBS_EVERY) && self.ledger.due_at <= self.harness.clock.now().millis();
        due || self.minute.is_multiple_of(UPKEEP_EVERY)
    }

    /// The wallet's jobs, and all that they start. Once in a while the store cannot be written meanwhile.
    async fn jobs(&mut self, held: bool) {
        let outage = self.dice.once_in(2_000);
        let (harness, sandbox) = (&self.harness, &self.harness.sandbox);
        let mut away = if outage { Some(Outage::begin(&harness.config.store.url).await) } else { None };
        let mut turn = std::pin::pin!(harness.turn());
        let mut waits = 0;
        let turned = loop {
            tokio::select! {
                turned = &mut turn => break turned,
                () = tokio::time::sleep(PATIENCE) => {}
            }
            waits += 1;
            // A held request outlives its lease.
            harness.hand.advance(Duration::from_secs(if held && waits < 8 { 5 } else { 1 }));
            if waits == 8 {
                sandbox.release();
                if let Some(away) = away.take() {
                    away.end().await;
                }
            }
        };
        if let Some(away) = away.take() {
            away.end().await;
        }
        if outage {
            self.ledger.outages += 1;
            self.weather.iter_mut().for_each(|weather| weather.shaken(self.minute));
        } else {
            assert!(turned.is_ok(), "{turned:?} in minute {}", self.minute);
        }
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        let Self { plan, minute, ledger, .. } = self;
        let (days, hours, minutes) = (*minute / 1_440, *minute / 60 % 24, *minute % 60);
        let Ledger {
            gets,
            tokens,
            restarts,
            outages,
            storms,
            revoked,
            unlinked,
            relinked,
            reports,
            steps,
            requests,
            ..
        } = ledger;
        eprintln!(
            "{plan:?}, until day {days} {hours}:{minutes:02}: {requests} refreshes seen by providers, {gets} gets \
             ({tokens} tokens), {storms} storms, {restarts} restarts, {outages} store outages, {steps} clock steps, \
             {revoked} revoked by people, {unlinked} unlinked, {relinked} linked again, {reports} tokens reported, \
             in {:.1?}",
            self.since.elapsed()
        );
    }
}

/// Metrics belong to the process, and so perhaps to the runs on both engines.
pub fn slug(engine: Engine, kind: &Kind) -> String {
    format!("{}-{engine:?}", kind.slug).to_lowercase()
}

/// Lets time pass while the wallet stops: what waits for it then would be waited for.
async fn ticking<T>(hand: &Hand, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(PATIENCE) => hand.advance(Duration::from_secs(1)),
        }
    }
}

//! A wallet's life with a death in it: what is left to chance, and the processes before and after.
#![expect(clippy::print_stderr, reason = "a run that fails tells what it saw")]

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use rustix::process::Signal;
use token_wallet::failpoint::VARIABLE;
use token_wallet::sandbox::{DEFAULT_CLIENT_SECRET, Effect, Options, Rotation, Rule};

use crate::support::dice::Dice;
use crate::support::file_hand::FileHand;
use crate::support::harness::{BEGIN, Engine};
use crate::support::outage::Outage;
use crate::support::proxy::Proxy;
use crate::support::service::Wallet;

/// Longer than any of the wallet's waits: it lasts until whoever is in doubt has tried again.
const GRACE: Duration = Duration::from_hours(2);

/// What becomes of redeemed refresh tokens at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// They are dead at once.
    Dead,
    /// They answer again for [`GRACE`].
    Grace,
    /// They are dead at once, and one that is presented again takes everything with it.
    Family,
}

/// What a run leaves to chance, decided by its seed.
pub struct Chance {
    pub step: &'static str,
    pub engine: Engine,
    pub seed: u64,
    dice: Dice,
}

impl Chance {
    pub fn new(step: &'static str, engine: Engine, seed: u64) -> Self {
        let run = step.bytes().chain([u8::from(engine == Engine::Postgres)]);
        let state = run.fold(seed, |state, byte| state.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        Self { step, engine, seed, dice: Dice::new(state) }
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.dice.below(limit)
    }

    pub fn flip(&mut self) -> bool {
        self.dice.once_in(2)
    }

    /// Between the first second and the last.
    pub fn seconds(&mut self, first: u64, last: u64) -> Duration {
        Duration::from_secs(self.dice.between(first, last))
    }

    /// Whether the step is the spool's, which is reached only while the store is away.
    pub fn is_the_spools(&self) -> bool {
        self.step.ends_with(".spooled")
    }

    /// For how long nobody runs. Where an answer is in the spool it may be longer than any lease.
    pub fn absence(&mut self) -> Duration {
        self.seconds(0, if self.is_the_spools() { 120 } else { 40 })
    }

    /// Seeds that follow each other meet all manners.
    pub fn manner(&self) -> Manner {
        [Manner::Grace, Manner::Dead, Manner::Family][usize::try_from(self.seed % 3).unwrap()]
    }
}

/// The wallet, its sandbox, and the time of both.
pub struct Life {
    pub wallet: Wallet,
    pub hand: FileHand,
    pub manner: Manner,
    /// What the wallet reaches PostgreSQL through, where the step needs the store to be away.
    proxy: Option<Proxy>,
    about: String,
}

impl Life {
    /// A configured wallet that runs until it reaches the step of `chance` for the `nth` time.
    pub async fn until(chance: &Chance, nth: u64) -> Self {
        let (hand, manner) = (FileHand::new(BEGIN), chance.manner());
        let options = Options {
            clock: hand.clock.clone(),
            rotation: if manner == Manner::Grace { Rotation::Grace(GRACE) } else { Rotation::Always },
            reuse_revokes_family: manner == Manner::Family,
            ..Options::default()
        };
        let clock = hand.path();
        let mut wallet = Wallet::new(chance.engine, options, &[("TOKEN_WALLET_CLOCK", clock.to_str().unwrap())]).await;
        let proxied = chance.is_the_spools() && chance.engine == Engine::Postgres;
        let proxy = proxied.then(|| wallet.behind_a_proxy());
        wallet.start_with(&[(VARIABLE, &format!("{}:{nth}", chance.step))]).await;
        wallet.configure(DEFAULT_CLIENT_SECRET).await;
        let held = match chance.step {
            "refresh.spooled" => Some(Rule::refresh(Effect::Hold)),
            "link.spooled" => Some(Rule::exchange(Effect::Hold)),
            _ => None,
        };
        wallet.sandbox.set_faults(held.map(Rule::after));
        let about = format!("{}:{nth} on {:?}, seed {}, {manner:?}", chance.step, chance.engine, chance.seed);
        Self { wallet, hand, manner, proxy, about }
    }

    /// If the step is the spool's: once the provider has done what it was asked, the store goes away, and then the
    /// wallet is answered.
    pub async fn store_away(&self, chance: &mut Chance) -> Option<Outage> {
        if !chance.is_the_spools() {
            return None;
        }
        self.wallet.sandbox.wait_held(1).await;
        let away = match (&self.proxy, chance.below(3)) {
            (Some(proxy), 0) => Outage::of_network(proxy, Proxy::cut),
            (Some(proxy), 1) => Outage::of_network(proxy, Proxy::hold),
            _ => Outage::begin(self.wallet.store()).await,
        };
        self.wallet.sandbox.release();
        Some(away)
    }

    /// Waits for the process to die where it was told to, and for the sandbox to decide what had reached it.
    pub async fn death(&mut self) {
        let status = self.wallet.end().await;
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// The next process, which dies nowhere. A store that is away is back before it starts, or soon after.
    pub async fn rebirth(&mut self, away: Option<Outage>, chance: &mut Chance) {
        let Some(away) = away else { return self.wallet.start().await };
        let steps = chance.below(2) * chance.below(15);
        if steps == 0 {
            away.end().await;
            return self.wallet.start().await;
        }
        let back = async {
            for _ in 0..steps {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            away.end().await;
        };
        tokio::join!(self.wallet.start(), back);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was {}; at the sandbox:", self.about);
            for request in self.wallet.sandbox.requests() {
                eprintln!("{request:?}");
            }
            let logs = self.wallet.folder().join("logs");
            for log in std::fs::read_dir(logs).unwrap().map(|entry| entry.unwrap().path()) {
                eprintln!("{}:\n{}", log.display(), std::fs::read_to_string(&log).unwrap());
            }
        }
    }
}

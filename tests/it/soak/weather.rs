//! What providers suffer from, for minutes or hours.

use std::time::Duration;

use token_wallet::sandbox::{Effect, Reply, Rule, Sandbox};

use crate::support::dice::Dice;

/// After a provider works again, the wallet may need so long to notice for each grant: its longest retry (15 min) and its
/// breaker's longest rest (5 min).
pub const AFTERMATH: u64 = 25;

/// How one provider fares, by the minute.
#[derive(Default, Debug)]
pub struct Weather {
    /// The fault that stands, and until when.
    storm: Option<(u64, u64)>,
    /// When it was last out of order.
    bad_at: Option<u64>,
}

impl Weather {
    /// Whether the provider has been well for so long that nothing of its grants may be overdue.
    pub fn is_calm(&self, minute: u64) -> bool {
        self.storm.is_none() && self.bad_at.is_none_or(|bad| bad + AFTERMATH < minute)
    }

    /// Something happened that throws all grants back.
    pub fn shaken(&mut self, minute: u64) {
        self.bad_at = Some(minute);
    }

    /// Ends what is over.
    pub fn pass(&mut self, minute: u64, sandbox: &Sandbox) {
        if let Some((rule, end)) = self.storm {
            self.bad_at = Some(minute);
            if end <= minute {
                sandbox.clear_fault(rule);
                self.storm = None;
            }
        }
    }

    /// Begins something, if nothing stands. True if requests are held.
    pub fn turn(&mut self, minute: u64, client: &str, dice: &mut Dice, sandbox: &Sandbox) -> bool {
        if self.storm.is_some() {
            return false;
        }
        let held = dice.once_in(10);
        let (rule, minutes) =
            if held { (Rule::refresh(Effect::Hold).times(3), 1) } else { (fault(dice), length(dice)) };
        self.storm = Some((sandbox.add_fault(rule.client(client)), minute + minutes));
        self.bad_at = Some(minute);
        held
    }
}

fn length(dice: &mut Dice) -> u64 {
    match dice.below(4) {
        0 => dice.between(1, 3),
        1 | 2 => dice.between(5, 60),
        _ => dice.between(60, 300),
    }
}

fn fault(dice: &mut Dice) -> Rule {
    let share = 0.05 * f64::from(u32::try_from(dice.between(1, 12)).unwrap());
    let html = || Reply::new(502).header("content-type", "text/html").body("<h1>Bad Gateway</h1>");
    let all = [
        Rule::refresh(Effect::error(503, "temporarily_unavailable")),
        Rule::refresh(Effect::Answer(html())).share_of_requests(share),
        Rule::refresh(Effect::error(400, "invalid_request")).share_of_grants(share),
        Rule::refresh(Effect::Answer(Reply::new(429).header("retry-after", "45"))).share_of_requests(share),
        Rule::refresh(Effect::error(401, "invalid_client")),
        Rule::refresh(Effect::Reset),
        Rule::refresh(Effect::Close).share_of_requests(share),
        Rule::refresh(Effect::Close).share_of_requests(share / 2.0).after(),
        Rule::refresh(Effect::Reset).share_of_grants(share).after(),
        Rule::refresh(Effect::BreakOff(40)).share_of_requests(share / 2.0),
        Rule::refresh(Effect::Truncate(30)).share_of_requests(share / 2.0),
        Rule::refresh(Effect::Answer(Reply::new(200).body("<p>maintenance"))).share_of_requests(share),
        Rule::refresh(Effect::Answer(Reply::new(200))).share_of_requests(share / 2.0).after(),
        Rule::refresh(Effect::Bom),
        Rule::refresh(Effect::Delay(Duration::from_millis(30))).share_of_requests(share),
    ];
    dice.pick(&all).clone()
}

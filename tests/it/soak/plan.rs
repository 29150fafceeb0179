//! How many grants, for how long, and at which providers.

use std::time::Duration;

use token_wallet::sandbox::{Manners, Rotation};

/// What a run is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub grants: usize,
    pub days: u64,
    pub seed: u64,
}

/// A provider, and which part of the grants it has.
pub struct Kind {
    /// Its slug, and the client's id there.
    pub slug: &'static str,
    /// The catalog's entry that says what it does.
    pub entry: &'static str,
    pub lifetime: Duration,
    pub per_mille: usize,
    rotation: Rotation,
    family: bool,
}

const fn kind(slug: &'static str, entry: &'static str, hours: u64, per_mille: usize, rotation: Rotation) -> Kind {
    Kind { slug, entry, lifetime: Duration::from_hours(hours), per_mille, rotation, family: false }
}

/// The shorter its tokens live, the more a grant costs: the tests have minutes.
pub const KINDS: [Kind; 8] = [
    kind("hourly", "sandbox_grace", 1, 2, GRACE),
    kind("grace", "sandbox_grace", 24, 50, GRACE),
    kind("grace-weekly", "sandbox_grace", 168, 250, GRACE),
    kind("dead-at-once", "sandbox", 8, 20, Rotation::Always),
    kind("dead-at-once-weekly", "sandbox", 168, 408, Rotation::Always),
    Kind { family: true, ..kind("family", "sandbox_strict", 24, 50, Rotation::Always) },
    Kind { family: true, ..kind("family-long", "sandbox_strict", 72, 200, Rotation::Always) },
    kind("static", "sandbox_static", 8, 20, Rotation::Never),
];

const GRACE: Rotation = Rotation::Grace(Duration::from_mins(1));

impl Plan {
    /// What the environment asks for, or this.
    pub fn of(grants: u64, days: u64) -> Self {
        let grants = asked("TOKEN_WALLET_SOAK_GRANTS", grants);
        Self {
            grants: usize::try_from(grants).unwrap(),
            days: asked("TOKEN_WALLET_SOAK_DAYS", days),
            seed: asked("TOKEN_WALLET_SOAK_SEED", 1),
        }
    }
}

impl Kind {
    /// What the sandbox does for it.
    pub fn manners(&self) -> Manners {
        Manners {
            token_ttl: Some(self.lifetime),
            rotation: Some(self.rotation),
            reuse_revokes_family: Some(self.family),
        }
    }
}

/// Which provider a user has.
pub fn kind_of(user: usize) -> usize {
    // Strewn, so that neighbours differ.
    let place = (user * 617) % 1000;
    let mut end = 0;
    let found = KINDS.iter().position(|kind| {
        end += kind.per_mille;
        place < end
    });
    found.unwrap()
}

#[expect(clippy::disallowed_methods, reason = "how whoever runs the tests asks for more of them")]
fn asked(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

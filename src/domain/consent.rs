//! A new consent for an account that has a grant: which of the two grants stays.

use super::grant::GrantState;
use super::scopes::Scopes;

/// What makes a grant better than another.
#[derive(Clone, Copy, Debug)]
pub struct Worth<'a> {
    /// Whether it has a refresh token.
    pub refreshable: bool,
    /// What it may do.
    pub scopes: &'a Scopes,
}

/// Whether a new grant takes the place of the current one, which is in `state`; `spent`: its token has run out and
/// cannot be refreshed. Over one that still serves, a new one loses that lacks a refresh token or a scope which that
/// has; over any other it wins.
pub fn replaces(current: Worth<'_>, state: GrantState, spent: bool, new: Worth<'_>) -> bool {
    match state {
        GrantState::Active | GrantState::Suspect if !spent => {
            (new.refreshable || !current.refreshable) && new.scopes.missing(current.scopes).is_empty()
        }
        GrantState::Active
        | GrantState::Suspect
        | GrantState::Dead
        | GrantState::Quarantined
        | GrantState::Ending
        | GrantState::Ended => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_a_grant_that_serves_only_a_grant_that_is_no_worse_wins() {
        // Refresh token and scopes of the current grant, of the new one, and whether the new one wins.
        for (current, new, wins) in [
            ((true, "a b"), (true, "a b"), true),
            ((true, "a b"), (true, "b a c"), true),
            ((true, "a b"), (false, "a b c"), false),
            ((true, "a b"), (true, "a"), false),
            ((true, "a b"), (true, "a c"), false),
            ((true, ""), (true, ""), true),
            ((false, "a"), (false, "a"), true),
            ((false, "a"), (true, "a"), true),
            ((false, "a b"), (true, "a"), false),
        ] {
            let (current_scopes, new_scopes) = (Scopes::split(current.1, " "), Scopes::split(new.1, " "));
            let old = Worth { refreshable: current.0, scopes: &current_scopes };
            let fresh = Worth { refreshable: new.0, scopes: &new_scopes };
            for state in [GrantState::Active, GrantState::Suspect] {
                assert_eq!(replaces(old, state, false, fresh), wins, "{current:?} {state:?} {new:?}");
            }
            for state in [GrantState::Dead, GrantState::Quarantined] {
                assert!(replaces(old, state, false, fresh), "{current:?} {state:?} {new:?}");
            }
            assert!(replaces(old, GrantState::Active, true, fresh), "{current:?} spent {new:?}");
        }
    }
}

//! Events.

use super::fields;
use crate::domain::error::Failure;
use crate::domain::event::{Class, EventKind};
use crate::proto::v1;
use crate::proto::v1::EventType;
use crate::store::{EventFilter, EventRow};

pub(in crate::api) fn event(row: EventRow) -> v1::Event {
    v1::Event {
        id: row.id.to_string(),
        r#type: row.kind.map_or(EventType::Unspecified, event_type).into(),
        time: Some(fields::moment(row.at)),
        user_id: row.user.map(|user| user.to_string()).unwrap_or_default(),
        provider: row.provider_slug,
        external_account_id: row.account.map(|account| account.to_string()).unwrap_or_default(),
        flow_id: row.flow.map(|flow| flow.to_string()).unwrap_or_default(),
        reason: row.reason.unwrap_or_default(),
        security: row.kind.is_some_and(|kind| kind.class() == Class::Security),
    }
}

/// What is asked for; nothing is everything.
pub(in crate::api) fn filter(filter: Option<v1::EventFilter>) -> Result<EventFilter, Failure> {
    let v1::EventFilter { user_id, provider, mut types } = filter.unwrap_or_default();
    // However often a request repeats itself, the store is asked for each once.
    types.sort_unstable();
    types.dedup();
    Ok(EventFilter {
        user: fields::optional(user_id).map(fields::user).transpose()?,
        provider: fields::optional(provider).map(fields::provider).transpose()?,
        kinds: types.into_iter().map(kind).collect::<Result<_, _>>()?,
    })
}

fn kind(wished: i32) -> Result<EventKind, Failure> {
    let found = EventKind::ALL.iter().copied().find(|kind| i32::from(event_type(*kind)) == wished);
    found.ok_or_else(|| Failure::field("types", "must be known types"))
}

const fn event_type(kind: EventKind) -> EventType {
    match kind {
        EventKind::AccountLinked => EventType::AccountLinked,
        EventKind::AccountRelinked => EventType::AccountRelinked,
        EventKind::AccountGrantKept => EventType::AccountGrantKept,
        EventKind::AccountScopesChanged => EventType::AccountScopesChanged,
        EventKind::AccountUnlinked => EventType::AccountUnlinked,
        EventKind::AccountReauthorizationRequired => EventType::AccountReauthorizationRequired,
        EventKind::AccountRecovered => EventType::AccountRecovered,
        EventKind::AccountQuarantined => EventType::AccountQuarantined,
        EventKind::AccountExpiresSoon => EventType::AccountExpiresSoon,
        EventKind::AccountDefaultChanged => EventType::AccountDefaultChanged,
        EventKind::AccountNotRefreshable => EventType::AccountNotRefreshable,
        EventKind::ProviderMisconfigured => EventType::ProviderMisconfigured,
        EventKind::ProviderUntrusted => EventType::ProviderUntrusted,
        EventKind::ProviderRecovered => EventType::ProviderRecovered,
        EventKind::FlowSessionMismatch => EventType::FlowSessionMismatch,
        EventKind::FlowProviderMismatch => EventType::FlowProviderMismatch,
        EventKind::GrantRevoked => EventType::GrantRevoked,
        EventKind::GrantRevocationFailed => EventType::GrantRevocationFailed,
        EventKind::GrantNotRevoked => EventType::GrantNotRevoked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_type_of_its_own_with_its_own_name() {
        for kind_of_event in EventKind::ALL {
            let told = event_type(*kind_of_event);
            let name = format!("EVENT_TYPE_{}", kind_of_event.as_str().replace('.', "_").to_uppercase());
            assert_eq!(told.as_str_name(), name);
            assert_eq!(kind(told.into()), Ok(*kind_of_event));
        }
        assert!(kind(0).is_err() && kind(-1).is_err() && kind(i32::MAX).is_err());
    }

    #[test]
    fn a_type_that_is_asked_for_again_and_again_is_one() {
        let (linked, revoked) = (i32::from(EventType::AccountLinked), i32::from(EventType::GrantRevoked));
        let types = [linked, revoked].repeat(1_000);
        let kinds = filter(Some(v1::EventFilter { types, ..Default::default() })).unwrap().kinds;
        assert_eq!(kinds, [EventKind::AccountLinked, EventKind::GrantRevoked]);
    }
}

//! External accounts.

use super::fields;
use crate::domain::account::{AccountState, Label};
use crate::domain::error::Failure;
use crate::linking::{Account, AccountEdit, UserProvider};
use crate::proto::v1;
use crate::proto::v1::external_account::State;

pub(in crate::api) fn account(account: Account) -> v1::ExternalAccount {
    let Account { row, profile, label } = account;
    v1::ExternalAccount {
        id: row.id.to_string(),
        user_id: row.user.to_string(),
        provider: row.provider_slug,
        provider_account_id: row.subject,
        state: state(row.state).into(),
        state_reason: row.state_reason.unwrap_or_default(),
        identity: Some(v1::AccountIdentity {
            name: profile.name.unwrap_or_default(),
            username: profile.username.unwrap_or_default(),
            email: profile.email.unwrap_or_default(),
            avatar_url: profile.avatar_url.unwrap_or_default(),
        }),
        granted_scopes: row.granted_scopes.into(),
        requested_scopes: row.requested_scopes.into(),
        refreshable: row.refreshable,
        expire_time: row.expires_at.map(fields::moment),
        last_refresh_time: row.issued_at.map(fields::moment),
        create_time: Some(fields::moment(row.created_at)),
        is_default: row.is_default,
        label: label.map(Label::into_string).unwrap_or_default(),
        etag: row.revision.to_string(),
    }
}

/// What an update names.
pub(in crate::api) fn edit(request: v1::UpdateExternalAccountRequest) -> Result<AccountEdit, Failure> {
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() {
        return Err(Failure::field("update_mask", "must name what to change: label, is_default"));
    }
    let mut edit = AccountEdit { revision: fields::revision(request.etag)?, ..AccountEdit::default() };
    for path in paths {
        match path.as_str() {
            "label" => {
                let label = Label::parse(request.label.clone()).map_err(|why| Failure::field("label", why))?;
                edit.label = Some(label);
            }
            "is_default" => edit.is_default = Some(request.is_default),
            _ => return Err(Failure::field("update_mask", "must name some of label, is_default")),
        }
    }
    Ok(edit)
}

pub(in crate::api) fn user_provider(of: UserProvider) -> v1::UserProvider {
    v1::UserProvider {
        provider: of.provider.slug.to_string(),
        display_name: of.provider.display_name,
        external_accounts: of.accounts.into_iter().map(account).collect(),
        connectable: of.connectable,
    }
}

/// A state to filter by; unspecified is none.
pub(in crate::api) fn filter(state: i32) -> Result<Option<AccountState>, Failure> {
    let state = State::try_from(state).map_err(|_| Failure::field("state", "must be a known state"))?;
    Ok(match state {
        State::Unspecified => None,
        State::Active => Some(AccountState::Active),
        State::ReauthorizationRequired => Some(AccountState::ReauthorizationRequired),
        State::Quarantined => Some(AccountState::Quarantined),
        State::Unlinked => Some(AccountState::Unlinked),
    })
}

const fn state(state: AccountState) -> State {
    match state {
        AccountState::Active => State::Active,
        AccountState::ReauthorizationRequired => State::ReauthorizationRequired,
        AccountState::Quarantined => State::Quarantined,
        AccountState::Unlinked => State::Unlinked,
    }
}

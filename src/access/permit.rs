//! Permits: proof that a caller may do what it asks for. Only this room makes them, so a use case that asks for one
//! cannot be reached without the question.

use crate::domain::error::Failure;
use crate::domain::ids::{ApiClientId, ApiKeyId};
use crate::domain::provider::Slug;
use crate::domain::user::UserId;

/// An authenticated API client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    client: ApiClientId,
    key: ApiKeyId,
}

/// Says that its caller may do `A`.
#[derive(Clone, Debug)]
pub struct Permit<A> {
    caller: Caller,
    action: A,
}

/// Something that a caller may or may not do.
pub trait Action: sealed::Sealed {}

/// Get an access token of a user at a provider.
#[derive(Clone, Debug)]
pub struct ReadToken {
    /// Whose.
    pub user: UserId,
    /// Where.
    pub provider: Slug,
}

/// Begin a link for a user at a provider.
#[derive(Clone, Debug)]
pub struct StartLink {
    /// For whom.
    pub user: UserId,
    /// Where.
    pub provider: Slug,
}

/// Begin a reauthorization of an account.
#[derive(Clone, Copy, Debug)]
pub struct Reauthorize;

/// End a link that this client began for a user.
#[derive(Clone, Debug)]
pub struct CompleteLink {
    /// Whose session brought the ticket.
    pub user: UserId,
}

/// See external accounts.
#[derive(Clone, Copy, Debug)]
pub struct ReadAccounts;

/// See which providers a user has, and could have.
#[derive(Clone, Debug)]
pub struct ReadUserProviders {
    /// Whose.
    pub user: UserId,
}

/// Change external accounts: label, default.
#[derive(Clone, Copy, Debug)]
pub struct UpdateAccounts;

/// Unlink external accounts.
#[derive(Clone, Copy, Debug)]
pub struct UnlinkAccounts;

/// See how providers are configured.
#[derive(Clone, Copy, Debug)]
pub struct ReadProviders;

/// Configure providers.
#[derive(Clone, Copy, Debug)]
pub struct ManageProviders;

/// Change the redirect-URL allow-list.
#[derive(Clone, Copy, Debug)]
pub struct ManageRedirectUrls;

/// List and watch events.
#[derive(Clone, Copy, Debug)]
pub struct ReadEvents;

/// Make and remove API clients.
#[derive(Clone, Copy, Debug)]
pub struct ManageClients;

mod sealed {
    pub trait Sealed {}
}

macro_rules! actions {
    ($($action:ty),*) => {$(
        impl sealed::Sealed for $action {}
        impl Action for $action {}
    )*};
}

actions!(
    ReadToken,
    StartLink,
    Reauthorize,
    CompleteLink,
    ReadAccounts,
    ReadUserProviders,
    UpdateAccounts,
    UnlinkAccounts,
    ReadProviders,
    ManageProviders,
    ManageRedirectUrls,
    ReadEvents,
    ManageClients
);

impl Caller {
    pub(super) const fn new(client: ApiClientId, key: ApiKeyId) -> Self {
        Self { client, key }
    }

    pub(super) const fn key(self) -> ApiKeyId {
        self.key
    }

    /// Which client it is.
    pub const fn client(self) -> ApiClientId {
        self.client
    }

    /// Asks whether this caller may do `action`. There is one role for now, an administrator's, so whoever holds a
    /// valid key may; the question is asked all the same, in the one place where roles will answer it.
    pub fn may<A: Action>(&self, action: A) -> Result<Permit<A>, Failure> {
        Ok(Permit { caller: *self, action })
    }
}

impl<A> Permit<A> {
    /// Who was permitted.
    pub const fn client(&self) -> ApiClientId {
        self.caller.client
    }

    pub(super) const fn caller(&self) -> Caller {
        self.caller
    }

    /// What was permitted.
    pub const fn action(&self) -> &A {
        &self.action
    }
}

//! What callers are told and what was counted, in a form that a test can compare.

use std::collections::BTreeMap;
use std::time::Duration;

use token_wallet::clock::Timestamp;
use token_wallet::proto::v1;
use token_wallet::sandbox::{Endpoint, Request};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::harness::{Harness, reason};

impl Harness {
    /// What who asks for the user's token is told: the reason of a refusal, or `OK` with a token that the provider
    /// accepts.
    pub async fn told(&self, user: &str) -> String {
        match self.get(user).await {
            Ok(token) => {
                assert!(self.is_accepted(&token.access_token).await, "{user} was given a dead token");
                "OK".into()
            }
            Err(status) => reason(&status),
        }
    }

    /// What the users `u0`, `u1` and so on are told: how many hear what.
    pub async fn all_told(&self, users: usize) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for n in 0..users {
            *counted.entry(self.told(&format!("u{n}")).await).or_default() += 1;
        }
        counted
    }

    /// Each kind of event and how many there are.
    pub async fn events(&self) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for kind in self.database().await.events().await {
            *counted.entry(kind).or_default() += 1;
        }
        counted
    }

    /// What a counter shows of the sandbox.
    pub async fn counted(&self, name: &str) -> u64 {
        let value = self.metric(&format!("token_wallet_{name}{{provider=\"sandbox\"}}")).await;
        format!("{value}").parse().unwrap()
    }

    /// How the provider `sandbox` fares.
    pub async fn provider_state(&self) -> v1::ProviderState {
        let request = v1::GetProviderRequest { provider: "sandbox".into() };
        let provider = self.providers().get_provider(request).await.unwrap().into_inner().provider.unwrap();
        provider.health.unwrap().state()
    }

    /// The user's newest account.
    pub async fn account(&self, user: &str) -> v1::ExternalAccount {
        let request = v1::ListExternalAccountsRequest { user_id: user.into(), ..Default::default() };
        let answer = self.accounts().list_external_accounts(request).await.unwrap().into_inner();
        answer.external_accounts.into_iter().next().unwrap()
    }

    /// The refreshes that the sandbox has seen.
    pub fn refreshes(&self) -> Vec<Request> {
        let mut requests = self.sandbox.requests();
        requests.retain(|request| {
            request.endpoint == Endpoint::Token && request.grant_type.as_deref() == Some("refresh_token")
        });
        requests
    }

    /// The code exchanges that the sandbox has seen.
    pub fn exchanges(&self) -> Vec<Request> {
        let mut requests = self.sandbox.requests();
        requests.retain(|request| {
            request.endpoint == Endpoint::Token && request.grant_type.as_deref() == Some("authorization_code")
        });
        requests
    }

    /// No refresh token was redeemed twice, and no grant was refreshed twice at once.
    pub fn assert_each_redeemed_once(&self) {
        let totals = self.sandbox.totals();
        assert_eq!((totals.reuses, totals.grace_repeats), (0, 0), "{totals:?}");
        assert!(totals.max_overlap <= 1, "{totals:?}");
    }

    /// The provider was sent no more refreshes than `per_second` allows: a second's worth at once, and then so many a
    /// second. As many as may be in flight can be seen a little later than they were let through.
    pub fn assert_within_budget(&self, per_second: u32, in_flight: u32) {
        let (rate, slack) = (f64::from(per_second), f64::from(in_flight));
        let mut times: Vec<_> = self.refreshes().iter().map(|request| request.time).collect();
        times.sort_unstable();
        let (mut left, mut last) = (rate, i64::MIN);
        for (number, time) in times.into_iter().enumerate() {
            let since = Timestamp::from_millis(time).since(Timestamp::from_millis(last));
            left = since.as_secs_f64().mul_add(rate, left).min(rate) - 1.0;
            assert!(left >= -slack, "the {number}th request is above the budget");
            last = time;
        }
    }
}

/// So many of each.
pub fn counts<const N: usize>(of: [(&str, usize); N]) -> BTreeMap<String, usize> {
    of.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// How long the caller is asked to wait.
pub fn wait(status: &Status) -> Duration {
    let delay = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    delay.unwrap_or_else(|| panic!("{status:?} does not say when to come again"))
}

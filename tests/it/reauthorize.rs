//! Consents given again: reauthorization, what a new grant must have to replace the one at hand, scopes, and errors that
//! say where the user must go (faults C12 to C15, P16).

use std::time::Duration;

use prost::Message as _;
use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Rule};
use tonic::{Code, Status};

use crate::support::browser::{location, parameter};
use crate::support::harness::{APP_URL, Harness, on_both_engines, reason, until};

impl Harness {
    /// Begins a reauthorization that ends at [`APP_URL`].
    async fn reauthorize(&self, account: &str) -> Result<v1::StartReauthorizationResponse, Status> {
        let request = v1::StartReauthorizationRequest {
            external_account_id: account.into(),
            redirect_url: APP_URL.into(),
            ..Default::default()
        };
        self.accounts().start_reauthorization(request).await.map(tonic::Response::into_inner)
    }

    /// A whole reauthorization, approved by `person`.
    async fn reauthorized(&self, user: &str, account: &str, person: &str) -> Result<v1::CompleteLinkResponse, Status> {
        let started = self.reauthorize(account).await.unwrap();
        let callback = self.decide(&started.authorization_url, person, "approve").await;
        self.complete(user, &self.ticket_of(callback).await).await
    }

    async fn shown(&self, id: &str) -> v1::ExternalAccount {
        let request = v1::GetExternalAccountRequest { external_account_id: id.into() };
        self.accounts().get_external_account(request).await.unwrap().into_inner().external_account.unwrap()
    }

    /// State, whether it is current, and why it is ending, of each grant; those that are ending are to be revoked.
    async fn grants(&self) -> Vec<String> {
        let sql =
            "SELECT CASE state WHEN 'ended' THEN 'ending' ELSE state END || CASE WHEN is_current THEN ' current' ELSE '' END || COALESCE(' ' || ending_reason, '')
            || CASE WHEN revoke_at IS NULL AND state = 'ending' THEN ' kept alive' ELSE '' END FROM grants ORDER BY id";
        self.database().await.texts(sql).await
    }

    /// The provider ends the user's grant.
    async fn end_grant(&self, user: &str) {
        self.pass(Duration::from_hours(2));
        self.sandbox.set_faults([Rule::refresh(Effect::error(400, "invalid_grant"))]);
        assert!(self.get(user).await.is_err());
        self.pass(Duration::from_secs(6));
        until("the refusal is confirmed", async || {
            self.get(user).await.is_err_and(|status| reason(&status) == "REAUTHORIZATION_REQUIRED")
        })
        .await;
        self.sandbox.clear_faults();
    }

    async fn get_or_consent(&self, request: v1::GetAccessTokenRequest) -> Result<v1::GetAccessTokenResponse, Status> {
        self.get_with(v1::GetAccessTokenRequest { redirect_url: APP_URL.into(), ..request }).await
    }
}

/// Where an error says that the user must go.
fn consent(status: &Status) -> Option<v1::AuthorizationRequired> {
    let rich = tonic_types::Status::decode(status.details()).unwrap();
    let wanted = |any: &&prost_types::Any| any.type_url.ends_with("/tokenwallet.v1.AuthorizationRequired");
    let found = rich.details.iter().find(wanted)?;
    Some(v1::AuthorizationRequired::decode(&*found.value).unwrap())
}

/// What an authorization URL asks for, sorted.
fn asked(url: &str) -> Vec<String> {
    let scopes = parameter(&url.parse().unwrap(), "scope").unwrap();
    let mut scopes: Vec<_> = scopes.split(' ').map(str::to_owned).collect();
    scopes.sort();
    scopes
}

fn of_user(user: &str) -> v1::GetAccessTokenRequest {
    v1::GetAccessTokenRequest { user_id: user.into(), ..Default::default() }
}

on_both_engines! {
    async fn a_reauthorization_renews_the_account_and_asks_for_all_that_it_ever_had(engine) {
        let harness = Harness::start(engine).await;
        let request = v1::StartLinkRequest {
            user_id: "u".into(),
            provider: "sandbox".into(),
            redirect_url: APP_URL.into(),
            additional_scopes: vec!["calendar".into()],
            ..Default::default()
        };
        let started = harness.accounts().start_link(request).await.unwrap().into_inner();
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let linked = harness.complete("u", &harness.ticket_of(callback).await).await.unwrap();
        assert!(!linked.kept_grant);
        let account = linked.external_account.unwrap();
        let old = harness.get("u").await.unwrap().access_token;
        // A dead grant is replaced by one with fewer scopes: what it had is not forgotten.
        harness.end_grant("u").await;
        harness.sandbox.set_faults([Rule::exchange(Effect::set("scope", "openid email"))]);
        let renewed = harness.reauthorized("u", &account.id, "demo").await.unwrap();
        assert_eq!((renewed.created, renewed.kept_grant), (false, false));
        assert_eq!(renewed.external_account.unwrap().granted_scopes, ["openid", "email"]);
        harness.sandbox.clear_faults();
        let request = v1::StartReauthorizationRequest {
            external_account_id: account.id.clone(),
            redirect_url: APP_URL.into(),
            additional_scopes: vec!["mail".into()],
            ..Default::default()
        };
        let started = harness.accounts().start_reauthorization(request).await.unwrap().into_inner();
        let all = ["calendar", "email", "mail", "offline_access", "openid", "profile"];
        assert_eq!(asked(&started.authorization_url), all);
        let hint = parameter(&started.authorization_url.parse().unwrap(), "login_hint");
        assert_eq!(hint.as_deref(), Some("demo@sandbox.example"));
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let renewed = harness.complete("u", &harness.ticket_of(callback).await).await.unwrap();
        let renewed = renewed.external_account.unwrap();
        assert_eq!((renewed.id, renewed.granted_scopes.len()), (account.id, all.len()));
        assert_eq!(harness.grants().await, ["ending superseded", "ending superseded", "active current"]);
        let new = harness.get("u").await.unwrap().access_token;
        assert!(new != old && harness.is_accepted(&new).await);
    }

    async fn c12_a_cancelled_reauthorization_leaves_the_grant_untouched(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        let started = harness.reauthorize(&account.id).await.unwrap();
        let callback = harness.decide(&started.authorization_url, "demo", "cancel").await;
        let end = location(&harness.http.get(callback).send().await.unwrap());
        assert_eq!(end.as_str(), format!("{APP_URL}?error=cancelled"));
        assert_eq!(harness.shown(&account.id).await, account);
        assert_eq!(harness.get("u").await.unwrap().access_token, token);
        assert_eq!(harness.grants().await, ["active current"]);
        assert_eq!(harness.exchanges().len(), 1, "the link's own");
    }

    async fn c13_another_account_than_the_one_to_reauthorize_changes_nothing(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        let started = harness.reauthorize(&account.id).await.unwrap();
        let callback = harness.decide(&started.authorization_url, "alice", "approve").await;
        let ticket = harness.ticket_of(callback).await;
        for _ in 0..2 {
            let refused = harness.complete("u", &ticket).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "ACCOUNT_MISMATCH"));
        }
        assert_eq!(harness.shown(&account.id).await, account);
        assert_eq!(harness.get("u").await.unwrap().access_token, token);
        assert_eq!(harness.grants().await, ["active current", "ending mismatch"], "and what came is to be revoked");
        let live = v1::ListExternalAccountsRequest { user_id: "u".into(), ..Default::default() };
        let live = harness.accounts().list_external_accounts(live).await.unwrap().into_inner().external_accounts;
        assert_eq!(live, std::slice::from_ref(&account));
        // The same with another account of that user: it keeps its own grant.
        let other = harness.link("u", "bob").await;
        let refused = harness.reauthorized("u", &account.id, "bob").await.unwrap_err();
        assert_eq!(reason(&refused), "ACCOUNT_MISMATCH");
        assert_eq!(harness.shown(&other.id).await, other);
        // And with the account of somebody else.
        let theirs = harness.link("v", "alice").await;
        let refused = harness.reauthorized("u", &account.id, "alice").await.unwrap_err();
        assert_eq!(reason(&refused), "ACCOUNT_MISMATCH");
        assert_eq!(harness.shown(&theirs.id).await, theirs);
        let grants = harness.grants().await;
        assert_eq!(grants.iter().filter(|grant| *grant == "ending mismatch").count(), 3);
        assert_eq!(grants.iter().filter(|grant| *grant == "active current").count(), 3);
    }

    async fn c14_a_grant_that_is_no_better_does_not_replace_one_that_serves(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        for fault in [Effect::omit("refresh_token"), Effect::set("scope", "openid profile offline_access")] {
            harness.sandbox.set_faults([Rule::exchange(fault.clone())]);
            let started = harness.reauthorize(&account.id).await.unwrap();
            let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
            let ticket = harness.ticket_of(callback).await;
            for _ in 0..2 {
                let kept = harness.complete("u", &ticket).await.unwrap();
                assert_eq!((kept.created, kept.kept_grant), (false, true), "{fault:?}");
                assert_eq!(kept.external_account.unwrap(), account, "{fault:?}");
            }
            assert_eq!(harness.get("u").await.unwrap().access_token, token, "{fault:?}");
        }
        assert_eq!(harness.grants().await, ["active current", "ending outdone", "ending outdone"]);
        let told = harness.database().await.events().await;
        assert_eq!(told, ["account.linked", "account.grant_kept", "account.grant_kept"]);
        // Over a dead one anything is better.
        harness.sandbox.clear_faults();
        harness.end_grant("u").await;
        harness.sandbox.set_faults([Rule::exchange(Effect::omit("refresh_token"))]);
        let renewed = harness.reauthorized("u", &account.id, "demo").await.unwrap();
        assert!(!renewed.kept_grant);
        assert!(!renewed.external_account.unwrap().refreshable);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }

    async fn c15_a_first_link_without_a_refresh_token_is_not_refreshable_and_says_so(engine) {
        let harness = Harness::start(engine).await;
        harness.sandbox.set_faults([Rule::exchange(Effect::omit("refresh_token"))]);
        let account = harness.link("u", "demo").await;
        assert!(!account.refreshable);
        assert_eq!(harness.database().await.events().await, ["account.linked", "account.not_refreshable"]);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        harness.pass(Duration::from_hours(2));
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "NO_REFRESH_TOKEN");
    }

    async fn an_account_that_is_unlinked_is_not_reauthorized(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let started = harness.reauthorize(&account.id).await.unwrap();
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let ticket = harness.ticket_of(callback).await;
        let request = v1::DeleteExternalAccountRequest { external_account_id: account.id.clone() };
        harness.accounts().delete_external_account(request).await.unwrap();
        assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
        assert_eq!(harness.grants().await, ["ending unlinked", "ending unlinked"]);
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        assert_eq!(reason(&harness.reauthorize(&account.id).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
        let unknown = harness.reauthorize("eac_00000000000000000000000000").await.unwrap_err();
        assert_eq!(reason(&unknown), "ACCOUNT_NOT_FOUND");
    }

    async fn p16_scopes_that_shrink_at_a_refresh_are_told_once_and_missed_only_by_who_needs_them(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.sandbox.set_faults([Rule::refresh(Effect::set("scope", "offline_access openid"))]);
        for _ in 0..3 {
            harness.pass(Duration::from_mins(55));
            let token = harness.get("u").await.unwrap();
            harness.work().await;
            assert!(harness.is_accepted(&token.access_token).await);
        }
        let shrunk = harness.get("u").await.unwrap().scopes;
        assert_eq!(shrunk, ["offline_access", "openid"]);
        let needs = |scope: &str| v1::GetAccessTokenRequest { required_scopes: vec![scope.into()], ..of_user("u") };
        assert!(harness.get_with(needs("openid")).await.is_ok());
        let missing = harness.get_with(needs("email")).await.unwrap_err();
        assert_eq!((missing.code(), reason(&missing).as_str()), (Code::FailedPrecondition, "MISSING_SCOPES"));
        assert_eq!(harness.database().await.events().await, ["account.linked", "account.scopes_changed"]);
        // The same words in another order are no change.
        harness.sandbox.set_faults([Rule::refresh(Effect::set("scope", "openid offline_access"))]);
        harness.pass(Duration::from_hours(1));
        harness.get("u").await.unwrap();
        assert_eq!(harness.database().await.events().await.len(), 2);
    }

    async fn a_sixth_open_flow_is_refused_until_the_oldest_ends(engine) {
        let harness = Harness::start(engine).await;
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let mut accounts = harness.accounts();
                let request = v1::StartLinkRequest {
                    user_id: "u".into(),
                    provider: "sandbox".into(),
                    redirect_url: APP_URL.into(),
                    ..Default::default()
                };
                tokio::spawn(async move { accounts.start_link(request).await })
            })
            .collect();
        let mut started = Vec::new();
        for call in calls {
            match call.await.unwrap() {
                Ok(answer) => started.push(answer.into_inner()),
                Err(refused) => {
                    use tonic_types::StatusExt as _;
                    let retry = refused.get_error_details().retry_info().and_then(|info| info.retry_delay).unwrap();
                    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
                    assert_eq!(retry, Duration::from_mins(10));
                }
            }
        }
        assert_eq!(started.len(), 5);
        // Other users are not in the way of each other, and an ended flow makes room.
        harness.start_link("v").await;
        let callback = harness.decide(&started[0].authorization_url, "demo", "cancel").await;
        harness.http.get(callback).send().await.unwrap();
        harness.start_link("u").await;
        harness.pass(Duration::from_mins(10));
        harness.start_link("u").await;
    }

    async fn an_error_that_a_consent_cures_says_where_to_send_the_user(engine) {
        let harness = Harness::start(engine).await;
        // Not linked: a link.
        let wanted = v1::GetAccessTokenRequest { required_scopes: vec!["calendar".into()], ..of_user("u") };
        let refused = harness.get_or_consent(wanted.clone()).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "ACCOUNT_NOT_LINKED"));
        cure(&harness, "u", &refused).await;
        assert!(harness.is_accepted(&harness.get_or_consent(wanted.clone()).await.unwrap().access_token).await);
        // Scopes that were not granted: a reauthorization.
        let more = v1::GetAccessTokenRequest { required_scopes: vec!["mail".into()], ..of_user("u") };
        let refused = harness.get_or_consent(more.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), "MISSING_SCOPES");
        cure(&harness, "u", &refused).await;
        assert!(harness.get_or_consent(more).await.is_ok());
        assert!(harness.get_or_consent(wanted.clone()).await.is_ok(), "and what was granted before is not lost");
        // A grant that the provider has ended.
        harness.end_grant("u").await;
        let refused = harness.get_or_consent(wanted.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), "REAUTHORIZATION_REQUIRED");
        cure(&harness, "u", &refused).await;
        assert!(harness.is_accepted(&harness.get_or_consent(wanted).await.unwrap().access_token).await);
        // A token that has run out and cannot be refreshed.
        harness.end_grant("u").await;
        harness.sandbox.set_faults([Rule::exchange(Effect::omit("refresh_token"))]);
        harness.link("u", "demo").await;
        harness.sandbox.clear_faults();
        harness.pass(Duration::from_hours(2));
        let refused = harness.get_or_consent(of_user("u")).await.unwrap_err();
        assert_eq!(reason(&refused), "NO_REFRESH_TOKEN");
        cure(&harness, "u", &refused).await;
        assert!(harness.get("u").await.is_ok());
        assert_eq!(harness.database().await.number("SELECT COUNT(*) FROM external_accounts").await, 1);
    }

    async fn a_failed_get_keeps_its_own_reason_where_no_flow_can_be_begun(engine) {
        let harness = Harness::start(engine).await;
        let refused = harness.get("u").await.unwrap_err();
        assert!(consent(&refused).is_none(), "nobody asked for it");
        assert_eq!(harness.database().await.number("SELECT COUNT(*) FROM flows").await, 0);
        let evil = v1::GetAccessTokenRequest { redirect_url: "https://evil.example/".into(), ..of_user("u") };
        let refused = harness.get_with(evil).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "REDIRECT_URL_NOT_ALLOWED"));
        for _ in 0..5 {
            assert!(consent(&harness.get_or_consent(of_user("u")).await.unwrap_err()).is_some());
        }
        let refused = harness.get_or_consent(of_user("u")).await.unwrap_err();
        assert_eq!(reason(&refused), "ACCOUNT_NOT_LINKED");
        assert!(consent(&refused).is_none());
        // In a batch too.
        let requests = vec![v1::GetAccessTokenRequest {
            provider: "sandbox".into(),
            redirect_url: APP_URL.into(),
            ..of_user("v")
        }];
        let answers = harness.wallet().batch_get_access_tokens(v1::BatchGetAccessTokensRequest { requests }).await;
        let Some(v1::batch_get_access_tokens_response::result::Result::Error(error)) =
            answers.unwrap().into_inner().results.remove(0).result
        else {
            panic!("nobody is linked");
        };
        let error = Status::with_details(Code::from(error.code), "", error.encode_to_vec().into());
        assert!(consent(&error).is_some());
    }
}

/// What an app does with an error that a consent cures: sends the user to its URL, and completes what comes back.
async fn cure(harness: &Harness, user: &str, refused: &Status) {
    let consent = consent(refused).unwrap();
    assert!(consent.flow_id.starts_with("flw_"));
    assert!(consent.expire_time.is_some());
    let callback = harness.decide(&consent.authorization_url, "demo", "approve").await;
    harness.complete(user, &harness.ticket_of(callback).await).await.unwrap();
}

//! What becomes of grants that ended, at the provider (faults N3, P20): its log of requests and its ledger are judge.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::{
    DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Effect, Ending, Endpoint, Options, Request, Rule,
};

use crate::support::harness::{Harness, on_both_engines, reason, until};
use crate::support::oracle::counts;

const HOUR: Duration = Duration::from_hours(1);

impl Harness {
    /// A harness with a provider `whole`, whose revocations end all that its person gave our client.
    async fn whole(engine: crate::support::harness::Engine) -> Self {
        let harness = Self::start(engine).await;
        harness
            .sandbox
            .set_settings(token_wallet::sandbox::Settings { revocation_ends_all: true, ..harness.sandbox.settings() });
        for slug in ["whole", "whole-too"] {
            let request = v1::CreateProviderRequest {
                slug: slug.into(),
                catalog_entry: "sandbox_whole".into(),
                client_id: DEFAULT_CLIENT_ID.into(),
                client_secret: DEFAULT_CLIENT_SECRET.into(),
                ..Default::default()
            };
            harness.providers().create_provider(request).await.unwrap();
        }
        harness
    }

    async fn link_at(&self, provider: &str, user: &str, person: &str) -> v1::ExternalAccount {
        let ticket = self.ticket_at(provider, user, person).await;
        self.complete(user, &ticket).await.unwrap().external_account.unwrap()
    }

    async fn unlink(&self, account: &v1::ExternalAccount) {
        let request = v1::DeleteExternalAccountRequest { external_account_id: account.id.clone() };
        self.accounts().delete_external_account(request).await.unwrap();
    }

    /// The revocations that the sandbox has decided.
    fn revocations(&self) -> Vec<Request> {
        let mut requests = self.sandbox.requests();
        requests.retain(|request| request.endpoint == Endpoint::Revoke);
        requests
    }

    /// How the person's consents ended, the oldest first.
    fn endings(&self, person: &str) -> Vec<Option<Ending>> {
        self.sandbox.grants_of(person).into_iter().map(|grant| grant.ended).collect()
    }

    /// Waits until no revocation is left to be tried.
    async fn all_revoked(&self) {
        until("nothing is left to be revoked", async || {
            self.work().await;
            self.pending().await == 0
        })
        .await;
    }

    async fn pending(&self) -> i64 {
        self.database().await.number("SELECT COUNT(*) FROM grants WHERE state = 'ending'").await
    }

    /// What was told of the ends of grants: kind and reason.
    async fn ends(&self) -> Vec<String> {
        let told = "SELECT kind || ' ' || COALESCE(reason, '-') FROM events WHERE kind LIKE 'grant.%' ORDER BY at, id";
        self.database().await.texts(told).await
    }

    /// Asks for the user's token in a task, and returns once the refresh that it causes is held.
    async fn refresh_held(
        &self,
        user: &str,
    ) -> tokio::task::JoinHandle<Result<v1::GetAccessTokenResponse, tonic::Status>> {
        self.pass(HOUR + HOUR);
        self.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
        let (mut wallet, user_id) = (self.wallet(), user.to_owned());
        let waiting = tokio::spawn(async move {
            let request = v1::GetAccessTokenRequest { user_id, provider: "sandbox".into(), ..Default::default() };
            wallet.get_access_token(request).await.map(tonic::Response::into_inner)
        });
        self.sandbox.wait_held(1).await;
        waiting
    }
}

on_both_engines! {
    async fn what_is_unlinked_is_revoked_at_once_and_its_tokens_are_erased(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        harness.unlink(&account).await;
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        // Without the job, and without time.
        until("it is revoked", async || harness.ends().await == ["grant.revoked -"]).await;
        let revocations = harness.revocations();
        assert_eq!(revocations.len(), 1);
        assert_eq!(revocations[0].presented.refresh_token, harness.sandbox.grants_of("demo")[0].refresh_token);
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked)]);
        assert!(!harness.is_accepted(&token).await);
        let erased = "SELECT COUNT(*) FROM grants WHERE state = 'ended' AND access_token IS NULL AND refresh_token IS NULL
            AND revoke_at IS NULL AND lease_until IS NULL";
        assert_eq!(harness.database().await.number(erased).await, 1);
        let profiles = "SELECT COUNT(*) FROM external_accounts WHERE profile IS NOT NULL";
        assert_eq!(harness.database().await.number(profiles).await, 0);
        harness.live(HOUR, Duration::from_mins(10)).await;
        assert_eq!((harness.revocations().len(), harness.ends().await.len()), (1, 1), "once, and told once");
        let revoked = "token_wallet_revocations_total{provider=\"sandbox\",outcome=\"revoked\"}";
        assert!(harness.metric(revoked).await > 0.0);
    }

    async fn p20_while_the_revocation_endpoint_is_down_the_stop_is_immediate_and_it_is_tried_until_it_is_back(engine) {
        let mut harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.sandbox.set_faults([Rule::revoke(Effect::error(503, "temporarily_unavailable"))]);
        harness.unlink(&account).await;
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        harness.live(HOUR, Duration::from_mins(2)).await;
        harness.live(Duration::from_hours(4), Duration::from_mins(10)).await;
        harness.restart().await;
        harness.live(Duration::from_hours(5), Duration::from_mins(10)).await;
        let tries = harness.revocations().len();
        assert!((12..=60).contains(&tries), "{tries}");
        assert_eq!((harness.pending().await, harness.ends().await.len()), (1, 0));
        let oldest = harness.metric("token_wallet_oldest_revocation_seconds").await;
        assert!((35_000.0..=37_000.0).contains(&oldest), "{oldest}");
        assert!(harness.metric("token_wallet_revocations_waiting").await > 0.0);
        harness.sandbox.clear_faults();
        harness.live(Duration::from_hours(2), Duration::from_mins(10)).await;
        assert_eq!(harness.ends().await, ["grant.revoked -"]);
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked)]);
    }

    async fn p20_after_a_day_in_vain_a_revocation_is_given_up_and_that_is_told(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.sandbox.set_faults([Rule::revoke(Effect::error(503, "temporarily_unavailable"))]);
        harness.unlink(&account).await;
        harness.live(Duration::from_hours(24) - Duration::from_mins(5), Duration::from_mins(10)).await;
        assert_eq!((harness.pending().await, harness.ends().await.len()), (1, 0));
        harness.live(HOUR, Duration::from_mins(10)).await;
        assert_eq!(harness.ends().await, ["grant.revocation_failed later"]);
        let tries = harness.revocations().len();
        harness.sandbox.clear_faults();
        harness.live(HOUR + HOUR, Duration::from_mins(10)).await;
        assert_eq!((harness.revocations().len(), harness.ends().await.len()), (tries, 1));
        assert_eq!(harness.database().await.number("SELECT COUNT(*) FROM grants WHERE access_token IS NOT NULL").await, 0);
    }

    async fn what_the_provider_will_never_revoke_is_told_and_not_tried_again(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.sandbox.set_faults([Rule::revoke(Effect::error(400, "unsupported_token_type"))]);
        harness.unlink(&account).await;
        harness.all_revoked().await;
        assert_eq!(harness.ends().await, ["grant.revocation_failed unsupported_token_type"]);
        assert_eq!(harness.revocations().len(), 1);
    }

    async fn where_nothing_can_be_revoked_that_is_told(engine) {
        let harness = Harness::start(engine).await;
        harness.create_own("own", DEFAULT_CLIENT_ID).await;
        let account = harness.link_at("own", "u", "demo").await;
        harness.unlink(&account).await;
        harness.all_revoked().await;
        assert_eq!(harness.ends().await, ["grant.not_revoked unsupported"]);
        assert!(harness.revocations().is_empty());
    }

    async fn n3_unlinked_while_a_refresh_is_in_flight_the_newest_token_is_revoked_after_it_has_ended(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let waiting = harness.refresh_held("u").await;
        harness.unlink(&account).await;
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        harness.turns("revoke", 2).await;
        assert!(harness.revocations().is_empty(), "the refresh is still under way");
        harness.sandbox.clear_faults();
        assert_eq!(reason(&waiting.await.unwrap().unwrap_err()), "ACCOUNT_NOT_LINKED", "the late result is not served");
        until("it is revoked", async || harness.ends().await == ["grant.revoked -"]).await;
        let [refresh] = <[Request; 1]>::try_from(harness.refreshes()).unwrap();
        let [revocation] = <[Request; 1]>::try_from(harness.revocations()).unwrap();
        assert_eq!(revocation.presented.refresh_token, refresh.issued.refresh_token, "the newest one");
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked)]);
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
    }

    async fn n3_linked_again_while_a_refresh_is_in_flight_the_new_grant_lives_and_the_old_one_is_revoked(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let waiting = harness.refresh_held("u").await;
        let again = harness.link("u", "demo").await;
        assert_eq!(again.id, account.id);
        let new = harness.get("u").await.unwrap().access_token;
        harness.sandbox.clear_faults();
        assert_eq!(waiting.await.unwrap().unwrap().access_token, new, "the late result is not served");
        harness.all_revoked().await;
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked), None]);
        harness.pass(HOUR + HOUR);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        assert_eq!(harness.ends().await, ["grant.revoked -"]);
    }

    async fn n3_deleted_and_added_again_at_once_the_new_grant_lives_and_nothing_else(engine) {
        let harness = Harness::start(engine).await;
        for _ in 0..3 {
            let account = harness.link("u", "demo").await;
            harness.unlink(&account).await;
        }
        let account = harness.link("u", "demo").await;
        harness.all_revoked().await;
        let revoked = Some(Ending::Revoked);
        assert_eq!(harness.endings("demo"), [revoked, revoked, revoked, None]);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        harness.unlink(&account).await;
        harness.all_revoked().await;
        assert_eq!(harness.endings("demo"), [revoked; 4]);
        assert_eq!(harness.events().await["grant.revoked"], 4);
    }

    async fn n3_an_answer_that_was_lost_leaves_a_doubt_and_all_that_is_known_is_revoked(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.pass(HOUR + HOUR);
        harness.sandbox.set_faults([Rule::refresh(Effect::Close).after()]);
        harness.get("u").await.unwrap_err();
        harness.unlink(&account).await;
        harness.turns("revoke", 2).await;
        assert!(harness.revocations().is_empty(), "whoever sent the refresh may still bring its answer");
        harness.pass(Duration::from_secs(25));
        harness.all_revoked().await;
        assert_eq!(harness.ends().await, ["grant.revoked in_doubt"]);
        let presented = harness.revocations().into_iter().map(|it| (it.presented.refresh_token, it.presented.access_token));
        let [first, second] = <[_; 2]>::try_from(presented.collect::<Vec<_>>()).unwrap();
        let linked = harness.exchanges().remove(0).issued;
        assert_eq!((first, second), ((linked.refresh_token, None), (None, linked.access_token)));
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked)], "with what was never seen");
    }

    async fn a_token_that_the_provider_does_not_take_back_keeps_no_other_from_it(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.pass(HOUR + HOUR);
        harness.sandbox.set_faults([
            Rule::refresh(Effect::Close).after().times(1),
            Rule::revoke(Effect::error(400, "unsupported_token_type")).times(1),
        ]);
        harness.get("u").await.unwrap_err();
        harness.unlink(&account).await;
        harness.pass(Duration::from_secs(25));
        harness.all_revoked().await;
        let presented = harness.revocations().into_iter().map(|it| it.presented.access_token.is_some());
        assert_eq!(presented.collect::<Vec<_>>(), [false, true], "the refresh token, which is refused, and the other");
        assert_eq!(harness.ends().await, ["grant.revoked in_doubt"]);
    }

    async fn p20_a_superseded_grant_is_dropped_where_its_revocation_would_end_the_newer_consent(engine) {
        let harness = Harness::whole(engine).await;
        harness.link_at("whole", "u", "demo").await;
        let account = harness.link_at("whole", "u", "demo").await;
        harness.all_revoked().await;
        assert_eq!(harness.ends().await, ["grant.not_revoked superseded"]);
        assert!(harness.revocations().is_empty());
        harness.pass(HOUR + HOUR);
        let token = harness.get_at("whole", "u").await.unwrap().access_token;
        assert!(harness.is_accepted(&token).await);
        harness.unlink(&account).await;
        harness.all_revoked().await;
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked); 2], "nothing stays alive after the unlink");
    }

    async fn n3_a_new_link_waits_for_the_revocation_that_was_sent_and_lives(engine) {
        let harness = Harness::whole(engine).await;
        let account = harness.link_at("whole", "u", "demo").await;
        harness.sandbox.set_faults([Rule::revoke(Effect::Hold)]);
        harness.unlink(&account).await;
        harness.sandbox.wait_held(1).await;
        let mut linking = Box::pin(harness.link_at("whole", "u", "demo"));
        assert!(tokio::time::timeout(Duration::from_millis(500), &mut linking).await.is_err(), "it must wait");
        assert_eq!(harness.endings("demo").len(), 1, "no consent is given before");
        harness.sandbox.clear_faults();
        linking.await;
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked), None]);
        harness.all_revoked().await;
        harness.pass(HOUR + HOUR);
        let token = harness.get_at("whole", "u").await.unwrap().access_token;
        assert!(harness.is_accepted(&token).await);
        assert_eq!((harness.ends().await, harness.revocations().len()), (vec!["grant.revoked -".to_owned()], 1));
    }

    async fn p20_a_newer_consent_is_never_ended_by_an_older_revocation(engine) {
        let harness = Harness::whole(engine).await;
        let account = harness.link_at("whole", "u", "demo").await;
        harness.sandbox.set_faults([Rule::revoke(Effect::error(503, "temporarily_unavailable"))]);
        harness.unlink(&account).await;
        harness.live(Duration::from_mins(1), Duration::from_secs(10)).await;
        let tries = harness.revocations().len();
        assert!(tries > 1);
        // The endpoint is back while the person is at the provider's page, and while the ticket is out.
        let ticket = harness.ticket_at("whole", "u", "demo").await;
        harness.sandbox.clear_faults();
        harness.live(Duration::from_secs(40), Duration::from_secs(10)).await;
        assert_eq!((harness.revocations().len(), harness.pending().await), (tries, 1), "it waits for the flow");
        let account = harness.complete("u", &ticket).await.unwrap().external_account.unwrap();
        harness.pass(HOUR);
        harness.all_revoked().await;
        assert_eq!((harness.ends().await, harness.revocations().len()), (vec!["grant.not_revoked in_use".to_owned()], tries));
        harness.pass(HOUR);
        let token = harness.get_at("whole", "u").await.unwrap().access_token;
        assert!(harness.is_accepted(&token).await);
        harness.unlink(&account).await;
        harness.all_revoked().await;
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked); 2], "nothing stays alive");
    }

    async fn p20_a_revocation_that_waits_for_a_flow_is_made_when_the_flow_comes_to_nothing(engine) {
        let harness = Harness::whole(engine).await;
        let account = harness.link_at("whole", "u", "demo").await;
        harness.ticket_at("whole-too", "u", "alice").await;
        harness.unlink(&account).await;
        harness.live(Duration::from_secs(30), Duration::from_secs(10)).await;
        assert_eq!((harness.revocations().len(), harness.pending().await), (0, 1));
        harness.live(Duration::from_mins(11), Duration::from_secs(30)).await;
        assert_eq!(harness.ends().await, ["grant.revoked -"]);
        assert_eq!(harness.endings("demo"), [Some(Ending::Revoked)]);
    }

    async fn p20_an_identity_that_is_linked_twice_by_one_client_is_revoked_with_its_last_account(engine) {
        let harness = Harness::whole(engine).await;
        let one = harness.link_at("whole", "u", "demo").await;
        let other = harness.link_at("whole-too", "v", "demo").await;
        let stranger = harness.link_at("whole", "w", "alice").await;
        harness.unlink(&one).await;
        harness.all_revoked().await;
        assert_eq!(harness.endings("demo"), [None, None]);
        assert!(harness.is_accepted(&harness.get_at("whole-too", "v").await.unwrap().access_token).await);
        harness.unlink(&other).await;
        harness.all_revoked().await;
        assert_eq!((harness.endings("demo"), harness.endings("alice")), (vec![Some(Ending::Revoked); 2], vec![None]));
        assert_eq!(harness.ends().await, ["grant.not_revoked in_use", "grant.revoked -"]);
        harness.unlink(&stranger).await;
        harness.all_revoked().await;
        assert_eq!(harness.endings("alice"), [Some(Ending::Revoked)]);
    }

    async fn a_revocation_without_an_answer_is_made_again(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        harness.sandbox.set_faults([Rule::revoke(Effect::Close).after().times(1)]);
        harness.unlink(&account).await;
        harness.live(Duration::from_secs(10), Duration::from_secs(1)).await;
        assert_eq!(harness.ends().await, ["grant.revoked -"]);
        assert_eq!(harness.revocations().len(), 2);
        assert_eq!(harness.events().await, counts([("account.linked", 1), ("account.unlinked", 1), ("grant.revoked", 1)]));
    }

    async fn many_that_are_unlinked_at_once_are_all_revoked_each_once(engine) {
        const USERS: usize = 30;
        let harness = Harness::with_users(engine, USERS, Options::default()).await;
        for n in 0..USERS {
            let account = harness.account(&format!("u{n}")).await;
            harness.unlink(&account).await;
        }
        harness.all_revoked().await;
        assert!(harness.sandbox.grants().iter().all(|grant| grant.ended == Some(Ending::Revoked)));
        assert_eq!((harness.revocations().len(), harness.events().await["grant.revoked"]), (USERS, USERS));
    }
}

//! Users: shown, listed, deleted with all that they have.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::sandbox::{Effect, Ending, Options, Rule};
use tonic::{Code, Status};

use crate::support::harness::{Harness, on_both_engines, reason, until};

const DAY: Duration = Duration::from_hours(24);

impl Harness {
    async fn user(&self, user: &str) -> Result<v1::User, Status> {
        let request = v1::GetUserRequest { user_id: user.into() };
        Ok(self.users().get_user(request).await?.into_inner().user.unwrap())
    }

    async fn delete_user(&self, user: &str) -> Result<(), Status> {
        self.users().delete_user(v1::DeleteUserRequest { user_id: user.into() }).await.map(drop)
    }

    async fn listed(&self, page_size: i32, page_token: String) -> (Vec<String>, String) {
        let request = v1::ListUsersRequest { page_size, page_token };
        let page = self.users().list_users(request).await.unwrap().into_inner();
        (page.users.into_iter().map(|user| user.id).collect(), page.next_page_token)
    }

    async fn rows(&self, of: &str) -> i64 {
        self.database().await.number(&format!("SELECT COUNT(*) FROM {of}")).await
    }
}

on_both_engines! {
    async fn a_user_exists_from_its_first_account_and_is_listed_by_its_id(engine) {
        let harness = Harness::with_users(engine, 5, Options::default()).await;
        assert_eq!(reason(&harness.user("nobody").await.unwrap_err()), "USER_NOT_FOUND");
        assert_eq!(reason(&harness.delete_user("nobody").await.unwrap_err()), "USER_NOT_FOUND");
        assert_eq!(harness.user("").await.unwrap_err().code(), Code::InvalidArgument);
        let user = harness.user("u3").await.unwrap();
        assert_eq!((user.id.as_str(), user.create_time.unwrap().seconds), ("u3", 1_800_000_000));
        let (first, next) = harness.listed(2, String::new()).await;
        let (second, next) = harness.listed(2, next).await;
        let (third, end) = harness.listed(2, next).await;
        assert_eq!(([first, second, third].concat(), end.as_str()), (["u0", "u1", "u2", "u3", "u4"].map(String::from).to_vec(), ""));
        let forged = v1::ListUsersRequest { page_size: 2, page_token: "x".into() };
        assert_eq!(reason(&harness.users().list_users(forged).await.unwrap_err()), "INVALID_FIELD");
        // A flow that comes to nothing makes no user.
        let ticket = harness.ticket("almost", "p5").await;
        assert_eq!(reason(&harness.user("almost").await.unwrap_err()), "USER_NOT_FOUND");
        // Nor does it when it was to be deleted meanwhile.
        assert_eq!(reason(&harness.delete_user("almost").await.unwrap_err()), "USER_NOT_FOUND");
        harness.complete("almost", &ticket).await.unwrap_err();
        assert_eq!(reason(&harness.user("almost").await.unwrap_err()), "USER_NOT_FOUND");
    }

    async fn a_deleted_user_is_gone_with_all_accounts_and_nothing_of_them_lives_on(engine) {
        let harness = Harness::start(engine).await;
        harness.create_own("own", token_wallet::sandbox::DEFAULT_CLIENT_ID).await;
        harness.link("u", "demo").await;
        harness.link("u", "alice").await;
        let ticket = harness.ticket_at("own", "u", "demo").await;
        harness.complete("u", &ticket).await.unwrap();
        harness.link("v", "bob").await;
        let token = harness.get_at("own", "u").await.unwrap().access_token;
        let open = harness.ticket("u", "demo").await;
        harness.delete_user("u").await.unwrap();
        for provider in ["sandbox", "own"] {
            assert_eq!(reason(&harness.get_at(provider, "u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        }
        assert_eq!(reason(&harness.user("u").await.unwrap_err()), "USER_NOT_FOUND");
        assert_eq!(harness.listed(0, String::new()).await.0, ["v"]);
        assert_eq!(reason(&harness.complete("u", &open).await.unwrap_err()), "TICKET_SPENT", "its flow is gone too");
        harness.delete_user("u").await.unwrap();
        until("nothing is left to be revoked", async || {
            harness.work().await;
            harness.rows("grants WHERE state = 'ending'").await == 0
        })
        .await;
        let left = "grants WHERE user_id = 'u' AND (access_token IS NOT NULL OR refresh_token IS NOT NULL)";
        assert_eq!(harness.rows(left).await, 0);
        assert_eq!(harness.rows("external_accounts WHERE user_id = 'u' AND profile IS NOT NULL").await, 0);
        assert_eq!(harness.rows("flows WHERE user_id = 'u'").await, 0);
        assert_eq!(harness.sandbox.grants_of("alice")[0].ended, Some(Ending::Revoked));
        assert!(harness.sandbox.grants_of("bob")[0].ended.is_none());
        // That one says nowhere how to revoke: this is told.
        assert!(harness.is_accepted(&token).await);
        let events = harness.events().await;
        assert_eq!((events["account.unlinked"], events["grant.revoked"], events["grant.not_revoked"]), (3, 2, 1));
        let reasons = "SELECT DISTINCT reason FROM events WHERE kind = 'account.unlinked'";
        assert_eq!(harness.database().await.texts(reasons).await, ["user_deleted"]);
        assert!(harness.is_accepted(&harness.get("v").await.unwrap().access_token).await);
    }

    async fn a_deleted_user_can_be_linked_again_and_is_a_new_one(engine) {
        let harness = Harness::start(engine).await;
        let before = harness.link("u", "demo").await;
        harness.pass(DAY);
        harness.delete_user("u").await.unwrap();
        harness.pass(DAY);
        let account = harness.link("u", "demo").await;
        assert_ne!(account.id, before.id);
        assert_eq!(harness.user("u").await.unwrap().create_time.unwrap().seconds, 1_800_000_000 + 2 * 86_400);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        harness.delete_user("u").await.unwrap();
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
    }

    async fn what_is_deleted_can_be_deleted_again_for_30_days_and_then_is_not_known_any_more(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        let kept = harness.link("v", "alice").await;
        harness.delete_user("u").await.unwrap();
        let delete = v1::DeleteExternalAccountRequest { external_account_id: account.id.clone() };
        let get = v1::GetExternalAccountRequest { external_account_id: account.id };
        harness.live(Duration::from_mins(1), Duration::from_secs(10)).await;
        harness.pass(DAY * 29);
        harness.work().await;
        harness.delete_user("u").await.unwrap();
        harness.accounts().delete_external_account(delete.clone()).await.unwrap();
        let shown = harness.accounts().get_external_account(get.clone()).await.unwrap().into_inner();
        let shown = shown.external_account.unwrap();
        assert_eq!((shown.state(), shown.identity.unwrap()), (v1::external_account::State::Unlinked, v1::AccountIdentity::default()));
        harness.pass(DAY * 2);
        harness.live(Duration::from_mins(1), Duration::from_secs(10)).await;
        assert_eq!(reason(&harness.delete_user("u").await.unwrap_err()), "USER_NOT_FOUND");
        let gone = harness.accounts().delete_external_account(delete).await.unwrap_err();
        assert_eq!(reason(&gone), "ACCOUNT_NOT_FOUND");
        assert_eq!(reason(&harness.accounts().get_external_account(get).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
        let rows = [harness.rows("users").await, harness.rows("external_accounts").await, harness.rows("grants").await];
        assert_eq!(rows, [1; 3]);
        let get = v1::GetExternalAccountRequest { external_account_id: kept.id };
        harness.accounts().get_external_account(get).await.unwrap();
    }

    async fn a_code_that_is_being_redeemed_while_its_user_is_deleted_makes_no_account_and_is_revoked(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "alice").await;
        let ticket = harness.ticket("u", "demo").await;
        harness.sandbox.set_faults([Rule::exchange(Effect::Hold).after()]);
        let deleting = async {
            harness.sandbox.wait_held(1).await;
            harness.delete_user("u").await.unwrap();
            harness.sandbox.clear_faults();
        };
        let (completed, ()) = tokio::join!(harness.complete("u", &ticket), deleting);
        assert_eq!(reason(&completed.unwrap_err()), "FLOW_OUTCOME_UNKNOWN");
        until("both are revoked", async || {
            harness.work().await;
            harness.events().await.get("grant.revoked") == Some(&2)
        })
        .await;
        assert!(harness.sandbox.grants().iter().all(|grant| grant.ended == Some(Ending::Revoked)));
        assert_eq!(harness.listed(0, String::new()).await.0, [""; 0]);
    }

    async fn a_parked_answer_of_a_deleted_user_makes_no_account_and_is_revoked(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "alice").await;
        let ticket = harness.ticket("u", "demo").await;
        harness.sandbox.set_faults([Rule::userinfo(Effect::error(503, "temporarily_unavailable"))]);
        assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "PROVIDER_UNAVAILABLE");
        harness.delete_user("u").await.unwrap();
        harness.sandbox.clear_faults();
        assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "USER_NOT_FOUND");
        harness.live(Duration::from_mins(2), Duration::from_secs(10)).await;
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        assert!(harness.sandbox.grants().iter().all(|grant| grant.ended == Some(Ending::Revoked)));
        assert_eq!((harness.events().await["grant.revoked"], harness.listed(0, String::new()).await.0.len()), (2, 0));
    }

    async fn what_was_linked_to_another_user_is_not_theirs_and_the_second_consent_is_revoked(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let ticket = harness.ticket("v", "demo").await;
        assert_eq!(reason(&harness.complete("v", &ticket).await.unwrap_err()), "ACCOUNT_LINKED_TO_ANOTHER_USER");
        until("it is revoked", async || harness.events().await.get("grant.revoked") == Some(&1)).await;
        let endings = harness.sandbox.grants_of("demo").into_iter().map(|grant| grant.ended).collect::<Vec<_>>();
        assert_eq!(endings, [None, Some(Ending::Revoked)]);
        assert_eq!(reason(&harness.user("v").await.unwrap_err()), "USER_NOT_FOUND");
        harness.pass(Duration::from_hours(2));
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }
}

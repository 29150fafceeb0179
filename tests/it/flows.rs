//! Links, the callback and its abuse (faults G8, G10, C1 to C11, C16).

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::proto::v1::complete_link_request::Proof;
use token_wallet::sandbox::{Effect, Options, Person, Reply, Rule};
use tonic::Code;

use crate::support::browser::{location, parameter};
use crate::support::harness::{APP_URL, Harness, on_both_engines, reason, until};

impl Harness {
    /// The page that a callback ends at: its status and text.
    async fn page(&self, url: impl reqwest::IntoUrl) -> (u16, String) {
        let answer = self.http.get(url).send().await.unwrap();
        let headers = answer.headers();
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn flow_states(&self) -> Vec<String> {
        self.database().await.texts("SELECT state || COALESCE(':' || failure, '') FROM flows ORDER BY id").await
    }
}

/// The authorization URL's own `state`.
fn state_of(started: &v1::StartLinkResponse) -> String {
    parameter(&started.authorization_url.parse().unwrap(), "state").unwrap()
}

on_both_engines! {
    async fn a_link_is_completed_by_ticket_or_by_the_whole_url(engine) {
        let harness = Harness::start(engine).await;
        let first = harness.link("u", "demo").await;
        assert_eq!(first.provider_account_id, "person-demo");
        assert_eq!(first.identity.as_ref().unwrap().email, "demo@sandbox.example");
        assert!(first.refreshable);
        // Again, with the whole URL: the same account, renewed.
        let started = harness.start_link("u").await;
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let end = location(&harness.http.get(callback).send().await.unwrap());
        assert!(end.as_str().starts_with(&format!("{APP_URL}?ticket=")), "{end}");
        let request = v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::RedirectedUrl(end.into())) };
        let again = harness.accounts().complete_link(request).await.unwrap().into_inner();
        assert!(!again.created);
        assert_eq!(again.external_account.unwrap().id, first.id);
        assert_eq!(harness.database().await.texts("SELECT state FROM grants WHERE is_current").await, ["active"]);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }

    async fn g8_a_flow_ends_only_where_the_list_allows(engine) {
        let harness = Harness::start(engine).await;
        for bad in [
            "https://evil.example/linked",
            "https://app.example.com/linked/",
            "https://app.example.com/linked?x=1",
            "https://app.example.com/linked?ticket=mine",
            "https://app.example.com/linked#",
            "https://app.example.com:444/linked",
            "https://app.example.com@evil.example/linked",
            "https://app.example.com\\@evil.example/linked",
            "https://app.example.com/x/../linked",
            "https://APP.example.com/linked",
            "//app.example.com/linked",
            "javascript:alert(1)",
            "http://evil.example/linked",
            "http://127.0.0.1.evil.example/linked",
            "http://2130706433/linked",
        ] {
            let request = v1::StartLinkRequest {
                user_id: "u".into(),
                provider: "sandbox".into(),
                redirect_url: bad.into(),
                ..Default::default()
            };
            let refused = harness.accounts().start_link(request).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "REDIRECT_URL_NOT_ALLOWED"), "{bad}");
            assert!(!refused.message().contains("example"), "never the value");
            let request = v1::CreateRedirectUrlRequest { url: bad.replace("evil.example", "user@evil.example"), ..Default::default() };
            let allowed = harness.redirect_urls().create_redirect_url(request).await;
            assert!(allowed.is_err() || !bad.contains("evil"), "{bad}");
        }
        assert!(harness.flow_states().await.is_empty());
    }

    async fn g8_a_url_taken_off_the_list_ends_no_flow_any_more(engine) {
        let harness = Harness::start(engine).await;
        let started = harness.start_link("u").await;
        let listed = harness.redirect_urls().list_redirect_urls(v1::ListRedirectUrlsRequest::default()).await.unwrap();
        let id = listed.into_inner().redirect_urls[0].id.clone();
        harness.redirect_urls().delete_redirect_url(v1::DeleteRedirectUrlRequest { redirect_url_id: id }).await.unwrap();
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        assert_eq!(harness.page(callback).await.0, 400);
        assert_eq!(harness.flow_states().await, ["failed:redirect_url_not_allowed"]);
    }

    async fn c1_every_bad_state_gets_one_and_the_same_page(engine) {
        let harness = Harness::start(engine).await;
        let used = harness.start_link("u").await;
        let callback = harness.decide(&used.authorization_url, "demo", "approve").await;
        harness.http.get(callback.clone()).send().await.unwrap();
        let expired = harness.start_link("u").await;
        let expired = harness.decide(&expired.authorization_url, "demo", "approve").await;
        harness.pass(Duration::from_mins(10));
        let long = "s".repeat(8_192);
        let base = harness.web("/oauth/callback/sandbox");
        let mut pages = vec![harness.page(callback).await, harness.page(expired).await];
        for query in ["", "?code=x", "?state=", "?state=%00", "?state=abc&code=x", &format!("?state={long}&code=x"),
            &format!("?state={}&code=x", "A".repeat(43)), "?state=a&state=b&code=x"] {
            pages.push(harness.page(format!("{base}{query}")).await);
        }
        assert_eq!(pages[0].0, 400);
        assert!(pages.iter().all(|page| *page == pages[0]));
        assert!(harness.exchanges().is_empty(), "no code was sent");
    }

    async fn c2_of_fifty_callbacks_with_one_state_exactly_one_proceeds(engine) {
        let harness = Harness::start(engine).await;
        let started = harness.start_link("u").await;
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let (http, callback) = (harness.http.clone(), callback.clone());
                tokio::spawn(async move { http.get(callback).send().await.unwrap() })
            })
            .collect();
        let mut tickets = Vec::new();
        for call in calls {
            let answer = call.await.unwrap();
            match answer.status().as_u16() {
                303 => tickets.extend(parameter(&location(&answer), "ticket")),
                status => assert_eq!(status, 400),
            }
        }
        assert_eq!(tickets.len(), 1);
        harness.complete("u", &tickets[0]).await.unwrap();
        assert_eq!(harness.exchanges().len(), 1);
    }

    async fn c3_a_replayed_callback_is_refused_and_changes_nothing(engine) {
        let harness = Harness::start(engine).await;
        let started = harness.start_link("u").await;
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let end = location(&harness.http.get(callback.clone()).send().await.unwrap());
        harness.complete("u", &parameter(&end, "ticket").unwrap()).await.unwrap();
        assert_eq!(harness.page(callback).await.0, 400);
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
        assert_eq!(harness.exchanges().len(), 1);
    }

    async fn c4_neither_code_nor_error_or_both_burns_the_state(engine) {
        let harness = Harness::start(engine).await;
        for extra in ["", "&code=", "&code=a&error=access_denied", "&code=a&code=b"] {
            let started = harness.start_link("u").await;
            let issuer = harness.sandbox.base_url();
            let base = harness.web("/oauth/callback/sandbox");
            let url = format!("{base}?state={}&iss={issuer}{extra}", state_of(&started));
            assert_eq!(harness.page(&url).await.0, 400, "{extra}");
            let honest = harness.decide(&started.authorization_url, "demo", "approve").await;
            assert_eq!(harness.page(honest).await.0, 400, "burned");
        }
        assert_eq!(harness.flow_states().await, vec!["failed:provider_error"; 4]);
    }

    async fn c5_an_error_of_the_provider_goes_back_to_the_app_as_ours(engine) {
        let harness = Harness::start(engine).await;
        let started = harness.start_link("u").await;
        let callback = harness.decide(&started.authorization_url, "demo", "cancel").await;
        let end = location(&harness.http.get(callback).send().await.unwrap());
        assert_eq!(end.as_str(), format!("{APP_URL}?error=cancelled"));
        let request = v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::RedirectedUrl(end.into())) };
        let told = harness.accounts().complete_link(request).await.unwrap_err();
        assert_eq!((told.code(), reason(&told).as_str()), (Code::FailedPrecondition, "FLOW_CANCELLED"));
        let huge = "d".repeat(1 << 20);
        for error in ["unheard_of", "%3Cscript%3Ealert(1)%3C%2Fscript%3E", &format!("x&error_description={huge}")] {
            let started = harness.start_link("u").await;
            let base = harness.web("/oauth/callback/sandbox");
            let url = format!("{base}?state={}&iss={}&error={error}", state_of(&started), harness.sandbox.base_url());
            let answer = harness.http.get(url).send().await;
            match answer {
                Ok(answer) if answer.status() == 303 => {
                    assert_eq!(location(&answer).as_str(), format!("{APP_URL}?error=provider_error"));
                }
                // A request line of a mebibyte is cut off before it is a request.
                Ok(answer) => assert!(error.len() > 1 << 19 && answer.status().is_client_error()),
                Err(_) => assert!(error.len() > 1 << 19),
            }
        }
        let states = harness.flow_states().await;
        assert_eq!(states[..3], ["failed:cancelled", "failed:provider_error", "failed:provider_error"]);
    }

    async fn c6_a_callback_at_another_providers_uri_burns_the_state_with_a_security_event(engine) {
        let harness = Harness::start(engine).await;
        let request = v1::CreateProviderRequest {
            slug: "other".into(),
            catalog_entry: "sandbox".into(),
            client_id: "sandbox".into(),
            ..Default::default()
        };
        harness.providers().create_provider(request).await.unwrap();
        let issuer = harness.sandbox.base_url();
        for path in ["other", "nonesuch"] {
            let started = harness.start_link("u").await;
            let base = harness.web(&format!("/oauth/callback/{path}"));
            let url = format!("{base}?state={}&code=stolen&iss={issuer}", state_of(&started));
            assert_eq!(harness.page(&url).await.0, 400);
            let honest = harness.decide(&started.authorization_url, "demo", "approve").await;
            assert_eq!(harness.page(honest).await.0, 400, "burned");
        }
        assert_eq!(harness.flow_states().await, vec!["failed:provider_mismatch"; 2]);
        assert_eq!(harness.database().await.events().await, vec!["flow.provider_mismatch"; 2]);
        assert!(harness.exchanges().is_empty());
    }

    async fn c7_a_victims_session_cannot_complete_an_attackers_flow(engine) {
        let harness = Harness::start(engine).await;
        // The attacker begins a flow and sends its URL to the victim, who approves with their own account.
        let ticket = harness.ticket("attacker", "alice").await;
        let refused = harness.complete("victim", &ticket).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "FLOW_SESSION_MISMATCH"));
        // The attacker gets hold of the ticket later: the flow is burned.
        let refused = harness.complete("attacker", &ticket).await.unwrap_err();
        assert_eq!(reason(&refused), "FLOW_SESSION_MISMATCH");
        assert!(harness.exchanges().is_empty(), "the code is never redeemed");
        assert_eq!(harness.flow_states().await, ["failed:session_mismatch"]);
        assert_eq!(harness.database().await.events().await, ["flow.session_mismatch"]);
        let code = harness.database().await.number("SELECT COUNT(*) FROM flows WHERE code IS NOT NULL").await;
        assert_eq!(code, 0, "and not kept either");
    }

    async fn c8_an_attackers_callback_in_the_victims_browser_links_nothing_to_the_victim(engine) {
        let harness = Harness::start(engine).await;
        let started = harness.start_link("attacker").await;
        let callback = harness.decide(&started.authorization_url, "bob", "approve").await;
        // The victim's browser opens the attacker's callback; the app has the victim's session.
        let end = location(&harness.http.get(callback).send().await.unwrap());
        let refused = harness.complete("victim", &parameter(&end, "ticket").unwrap()).await.unwrap_err();
        assert_eq!(reason(&refused), "FLOW_SESSION_MISMATCH");
        assert_eq!(reason(&harness.get("victim").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
    }

    async fn c9_an_outcome_is_told_again_to_its_client_alone_and_not_for_ever(engine) {
        let harness = Harness::start(engine).await;
        let request = v1::CreateApiClientRequest { display_name: "another".into(), key_ttl: None, ..Default::default() };
        let other = harness.clients().create_api_client(request).await.unwrap().into_inner().api_key.unwrap().secret;
        let ticket = harness.ticket("u", "demo").await;
        let first = harness.complete("u", &ticket).await.unwrap();
        let again = harness.complete("u", &ticket).await.unwrap();
        assert_eq!((again.created, &again.external_account), (true, &first.external_account));
        let proof = || v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::Ticket(ticket.clone())) };
        let mut stranger = harness.accounts_as(&other);
        assert_eq!(stranger.complete_link(proof()).await.unwrap_err().code(), Code::PermissionDenied);
        harness.complete("u", &ticket).await.expect("asking changed nothing");
        harness.pass(Duration::from_mins(11));
        assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "TICKET_SPENT");
        assert_eq!(harness.exchanges().len(), 1);
        // Late, for the first time.
        let late = harness.ticket("u", "demo").await;
        harness.pass(Duration::from_secs(61));
        assert_eq!(reason(&harness.complete("u", &late).await.unwrap_err()), "FLOW_EXPIRED");
        // Before it is completed, another client's hands burn it.
        let stolen = harness.ticket("u", "demo").await;
        let proof = v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::Ticket(stolen.clone())) };
        assert_eq!(stranger.complete_link(proof).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(reason(&harness.complete("u", &stolen).await.unwrap_err()), "FLOW_SESSION_MISMATCH");
        assert_eq!(harness.exchanges().len(), 1);
    }

    async fn c10_a_callback_and_a_completion_after_a_restart_work(engine) {
        let mut harness = Harness::start(engine).await;
        let started = harness.start_link("u").await;
        // The redirect URI holds the web listener's port: it must be the same after the restart.
        harness.config.listeners.web = harness.addresses().web;
        harness.restart().await;
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let end = location(&harness.http.get(callback).send().await.unwrap());
        harness.restart().await;
        harness.complete("u", &parameter(&end, "ticket").unwrap()).await.unwrap();
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }

    async fn c16_a_completion_whose_caller_leaves_is_finished_and_told_later(engine) {
        let harness = Harness::start(engine).await;
        let ticket = harness.ticket("u", "demo").await;
        harness.sandbox.set_faults([Rule::exchange(Effect::Hold).after()]);
        let (mut accounts, sent) = (harness.accounts(), ticket.clone());
        let call = tokio::spawn(async move {
            let request = v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::Ticket(sent)) };
            accounts.complete_link(request).await
        });
        harness.sandbox.wait_held(1).await;
        assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), "FLOW_IN_PROGRESS");
        call.abort();
        harness.sandbox.release();
        until("the outcome is there", async || harness.complete("u", &ticket).await.is_ok()).await;
        assert_eq!(harness.exchanges().len(), 1, "a code is sent once");
    }

    async fn a_profile_that_cannot_be_read_at_once_is_read_later(engine) {
        let harness = Harness::start(engine).await;
        let ticket = harness.ticket("u", "demo").await;
        harness.sandbox.set_faults([Rule::userinfo(Effect::error(503, "temporarily_unavailable"))]);
        let told = harness.complete("u", &ticket).await.unwrap_err();
        assert_eq!(reason(&told), "PROVIDER_UNAVAILABLE");
        assert_eq!(harness.flow_states().await, ["exchanged"]);
        harness.sandbox.clear_faults();
        harness.pass(Duration::from_secs(16));
        until("the parked answer became an account", async || harness.get("u").await.is_ok()).await;
        assert!(harness.complete("u", &ticket).await.unwrap().created);
        assert_eq!(harness.exchanges().len(), 1);
    }

    async fn a_completion_that_meets_the_resume_job_tells_the_same_outcome(engine) {
        let harness = Harness::start(engine).await;
        let ticket = harness.ticket("u", "demo").await;
        harness.sandbox.set_faults([Rule::userinfo(Effect::Hold)]);
        let (mut accounts, sent) = (harness.accounts(), ticket.clone());
        let call = tokio::spawn(async move {
            let request = v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::Ticket(sent)) };
            accounts.complete_link(request).await
        });
        // The call and the job both read the profile.
        harness.sandbox.wait_held(1).await;
        harness.pass(Duration::from_secs(16));
        harness.sandbox.wait_held(2).await;
        harness.sandbox.release();
        let told = call.await.unwrap().unwrap().into_inner();
        assert!(told.created);
        assert_eq!(harness.complete("u", &ticket).await.unwrap(), told);
        assert_eq!(harness.database().await.number("SELECT COUNT(*) FROM external_accounts").await, 1);
    }

    async fn a_code_is_not_claimed_before_it_may_be_sent(engine) {
        let names: Vec<String> = (0..17).map(|number| format!("p{number}")).collect();
        let people = names.iter().map(|name| Person::named(name)).collect();
        let harness = Harness::with(engine, Options { people, ..Options::default() }).await;
        let mut tickets = Vec::new();
        for name in &names {
            tickets.push((name.clone(), harness.ticket(name, name).await));
        }
        harness.sandbox.set_faults([Rule::exchange(Effect::Hold)]);
        let completing = async |(name, ticket): (String, String)| harness.complete(&name, &ticket).await.map(drop);
        let all = futures_util::future::join_all(tickets.into_iter().map(completing));
        let look = async {
            harness.sandbox.wait_held(16).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut states = harness.flow_states().await;
            states.sort();
            states.dedup();
            harness.sandbox.release();
            states
        };
        let (ended, states) = tokio::join!(all, look);
        assert_eq!(states, ["claimed", "returned"], "a claimed flow would be given up after a minute");
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    }

    async fn p10_p12_p14_a_refused_or_unanswered_code_is_not_sent_again(engine) {
        let harness = Harness::start(engine).await;
        let html = Reply::new(200).body("<h1>OK</h1>").header("content-type", "text/html");
        for (effect, told) in [
            (Effect::error(400, "invalid_grant"), "FLOW_EXPIRED"),
            (Effect::error(401, "invalid_client"), "PROVIDER_MISCONFIGURED"),
            (Effect::error(503, "temporarily_unavailable"), "FLOW_OUTCOME_UNKNOWN"),
            (Effect::Answer(html), "FLOW_OUTCOME_UNKNOWN"),
            (Effect::Truncate(20), "FLOW_OUTCOME_UNKNOWN"),
            (Effect::Huge(1 << 30), "FLOW_OUTCOME_UNKNOWN"),
            (Effect::Nested(100_000), "FLOW_OUTCOME_UNKNOWN"),
            (Effect::Close, "FLOW_OUTCOME_UNKNOWN"),
        ] {
            let ticket = harness.ticket("u", "demo").await;
            harness.sandbox.set_faults([Rule::exchange(effect.clone())]);
            harness.sandbox.clear_requests();
            for _ in 0..2 {
                assert_eq!(reason(&harness.complete("u", &ticket).await.unwrap_err()), told, "{effect:?}");
            }
            assert_eq!(harness.exchanges().len(), 1, "{effect:?}");
        }
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        // It can be begun again.
        harness.sandbox.clear_faults();
        harness.link("u", "demo").await;
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }

    async fn g10_an_account_of_another_user_is_not_taken_over(engine) {
        let harness = Harness::start(engine).await;
        harness.link("first", "demo").await;
        let ticket = harness.ticket("second", "demo").await;
        let refused = harness.complete("second", &ticket).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::AlreadyExists, "ACCOUNT_LINKED_TO_ANOTHER_USER"));
        assert!(!refused.message().contains("first"), "without saying whose");
        assert!(harness.is_accepted(&harness.get("first").await.unwrap().access_token).await);
        assert_eq!(reason(&harness.get("second").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
    }

    async fn without_a_redirect_url_a_development_flow_ends_on_our_page_with_the_call(engine) {
        let harness = Harness::start(engine).await;
        let request = v1::StartLinkRequest { user_id: "u".into(), provider: "sandbox".into(), ..Default::default() };
        let started = harness.accounts().start_link(request).await.unwrap().into_inner();
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let (status, page) = harness.page(callback).await;
        assert_eq!(status, 200);
        assert!(page.contains("tokenwallet.v1.ExternalAccountService/CompleteLink"));
        let (_, after) = page.split_once("&#34;ticket&#34;: &#34;").unwrap();
        let (ticket, _) = after.split_once("&#34;").unwrap();
        harness.complete("u", ticket).await.unwrap();
    }

    async fn accounts_are_shown_and_listed_in_pages(engine) {
        let harness = Harness::start(engine).await;
        for (user, person) in [("a", "demo"), ("a", "alice"), ("b", "bob")] {
            harness.link(user, person).await;
        }
        let list = async |request: v1::ListExternalAccountsRequest| {
            harness.accounts().list_external_accounts(request).await.map(tonic::Response::into_inner)
        };
        let of_a = v1::ListExternalAccountsRequest { user_id: "a".into(), page_size: 1, ..Default::default() };
        let first = list(of_a.clone()).await.unwrap();
        assert_eq!(first.external_accounts[0].provider_account_id, "person-alice", "newest first");
        let next = v1::ListExternalAccountsRequest { page_token: first.next_page_token.clone(), ..of_a.clone() };
        let second = list(next).await.unwrap();
        assert_eq!(second.external_accounts[0].provider_account_id, "person-demo");
        assert_eq!(second.next_page_token, "");
        let foreign = v1::ListExternalAccountsRequest { user_id: "b".into(), page_token: first.next_page_token, ..Default::default() };
        assert_eq!(list(foreign).await.unwrap_err().code(), Code::InvalidArgument);
        let all = v1::ListExternalAccountsRequest { page_size: i32::MAX, ..Default::default() };
        assert_eq!(list(all).await.unwrap().external_accounts.len(), 3);
        let missing = v1::GetExternalAccountRequest { external_account_id: "eac_00000000000000000000000000".into() };
        assert_eq!(reason(&harness.accounts().get_external_account(missing).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
    }
}

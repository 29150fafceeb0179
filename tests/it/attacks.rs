//! Attacks on flows, each as an attacker would go about it: what they have, what they do, and that it gets them nothing.

use token_wallet::proto::v1;
use token_wallet::proto::v1::complete_link_request::Proof;
use tonic::Code;

use crate::support::browser::{location, parameter};
use crate::support::harness::{APP_URL, Harness, on_both_engines, reason};

impl Harness {
    /// Another application with an API key of its own.
    async fn another_app(&self) -> String {
        let request =
            v1::CreateApiClientRequest { display_name: "another".into(), key_ttl: None, ..Default::default() };
        self.clients().create_api_client(request).await.unwrap().into_inner().api_key.unwrap().secret
    }

    /// Another provider, which is the sandbox again.
    async fn another_provider(&self) {
        let request = v1::CreateProviderRequest {
            slug: "other".into(),
            catalog_entry: "sandbox".into(),
            client_id: "sandbox".into(),
            ..Default::default()
        };
        self.providers().create_provider(request).await.unwrap();
    }

    /// A flow of `user` that `person` has approved: the callback that their browser is sent to.
    async fn approved(&self, user: &str, person: &str) -> reqwest::Url {
        let started = self.start_link(user).await;
        self.decide(&started.authorization_url, person, "approve").await
    }

    async fn assert_nothing_came_of_it(&self, users: &[&str]) {
        for user in users {
            assert_eq!(reason(&self.get(user).await.unwrap_err()), "ACCOUNT_NOT_LINKED", "{user}");
        }
        assert_eq!(self.database().await.number("SELECT COUNT(*) FROM grants").await, 0);
        assert!(self.exchanges().is_empty(), "no code was sent to the provider");
    }
}

on_both_engines! {
    /// The attacker wants the victim to use an account that the attacker can read.
    async fn login_csrf_links_nothing_of_the_attacker_to_the_victim(engine) {
        let harness = Harness::start(engine).await;
        // The attacker approves with their own account, and stops before the callback.
        let callback = harness.approved("attacker", "bob").await;
        // A page of theirs sends the victim's browser there, signed in at the app.
        let end = location(&harness.http.get(callback).send().await.unwrap());
        assert!(end.as_str().starts_with(APP_URL));
        let request = v1::CompleteLinkRequest { user_id: "victim".into(), proof: Some(Proof::RedirectedUrl(end.into())) };
        let refused = harness.accounts().complete_link(request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "FLOW_SESSION_MISMATCH"));
        harness.assert_nothing_came_of_it(&["attacker", "victim"]).await;
        assert_eq!(harness.database().await.events().await, ["flow.session_mismatch"]);
    }

    /// The attacker wants a grant of the victim's account under their own user.
    async fn a_hijacked_link_gives_the_attacker_nothing_of_the_victim(engine) {
        let harness = Harness::start(engine).await;
        // The victim is sent the attacker's own authorization URL, and approves with their account.
        let callback = harness.approved("attacker", "alice").await;
        let end = location(&harness.http.get(callback).send().await.unwrap());
        let ticket = parameter(&end, "ticket").unwrap();
        // The victim's app finds a ticket that is not of its user.
        assert_eq!(reason(&harness.complete("victim", &ticket).await.unwrap_err()), "FLOW_SESSION_MISMATCH");
        // The attacker learns of the ticket afterwards.
        assert_eq!(reason(&harness.complete("attacker", &ticket).await.unwrap_err()), "FLOW_SESSION_MISMATCH");
        harness.assert_nothing_came_of_it(&["attacker", "victim"]).await;
    }

    /// The attacker runs an application beside the one that the ticket is for, and has read the ticket off a URL.
    async fn a_stolen_ticket_is_worthless_to_another_app_and_its_user_hears_of_it(engine) {
        let harness = Harness::start(engine).await;
        let key = harness.another_app().await;
        let ticket = harness.ticket("u", "demo").await;
        let request = v1::CompleteLinkRequest { user_id: "u".into(), proof: Some(Proof::Ticket(ticket.clone())) };
        let thief = harness.accounts_as(&key).complete_link(request).await.unwrap_err();
        assert_eq!((thief.code(), reason(&thief).as_str()), (Code::PermissionDenied, "FLOW_SESSION_MISMATCH"));
        let robbed = harness.complete("u", &ticket).await.unwrap_err();
        assert_eq!((robbed.code(), reason(&robbed).as_str()), (Code::PermissionDenied, "FLOW_SESSION_MISMATCH"));
        assert!(robbed.message().contains("somebody else brought this flow back"), "{}", robbed.message());
        assert_ne!(thief.message(), robbed.message(), "who brought it is not told that it was somebody else");
        harness.assert_nothing_came_of_it(&["u"]).await;
        assert_eq!(harness.database().await.events().await, ["flow.session_mismatch"]);
    }

    /// The attacker has read the victim's code off a URL, and puts it into a flow of their own.
    async fn an_injected_code_is_of_no_use_in_another_flow(engine) {
        let harness = Harness::start(engine).await;
        let stolen = harness.approved("victim", "alice").await;
        let mut own = harness.approved("attacker", "bob").await;
        let state = parameter(&own, "state").unwrap();
        let code = parameter(&stolen, "code").unwrap();
        own.query_pairs_mut().clear().append_pair("state", &state).append_pair("code", &code)
            .append_pair("iss", &harness.sandbox.base_url());
        let ticket = harness.ticket_of(own).await;
        assert_eq!(reason(&harness.complete("attacker", &ticket).await.unwrap_err()), "FLOW_EXPIRED");
        let exchanges = harness.exchanges();
        assert_eq!(exchanges.iter().map(|request| request.status).collect::<Vec<_>>(), [400], "PKCE binds it to its flow");
        assert_eq!(reason(&harness.get("attacker").await.unwrap_err()), "ACCOUNT_NOT_LINKED");
        // The victim is not in the attacker's way, nor the other way round.
        harness.complete("victim", &harness.ticket_of(stolen).await).await.unwrap();
        assert_eq!(harness.account("victim").await.provider_account_id, "person-alice");
    }

    /// The attacker runs a provider, and wants the code of an honest one sent to their token endpoint (RFC 9700, 4.4).
    async fn a_mixed_up_callback_sends_the_code_to_nobody(engine) {
        let harness = Harness::start(engine).await;
        harness.another_provider().await;
        // The flow was begun at one, the honest code comes to the address of the other.
        let honest = harness.approved("u", "demo").await;
        let mixed_up = honest.as_str().replace("/oauth/callback/sandbox", "/oauth/callback/other");
        assert_eq!(harness.http.get(mixed_up).send().await.unwrap().status(), 400);
        // It is burned for the honest address, too.
        assert_eq!(harness.http.get(honest).send().await.unwrap().status(), 400);
        // At the right address, but named by another issuer, or by none: the app hears of it, and gets no ticket.
        for iss in ["&iss=https%3A%2F%2Fevil.example", ""] {
            let honest = harness.approved("u", "demo").await;
            let (state, code) = (parameter(&honest, "state").unwrap(), parameter(&honest, "code").unwrap());
            let base = harness.web("/oauth/callback/sandbox");
            let answer = harness.http.get(format!("{base}?state={state}&code={code}{iss}")).send().await.unwrap();
            assert_eq!(answer.status(), 303);
            assert_eq!(location(&answer).as_str(), format!("{APP_URL}?error=provider_mismatch"));
            assert_eq!(harness.http.get(honest).send().await.unwrap().status(), 400, "burned");
        }
        harness.assert_nothing_came_of_it(&["u"]).await;
        assert_eq!(harness.database().await.events().await, ["flow.provider_mismatch"; 3]);
    }

    /// The attacker wants the wallet to send browsers, and tickets, to them.
    async fn no_callback_sends_a_browser_anywhere_but_to_where_its_flow_ends(engine) {
        let harness = Harness::start(engine).await;
        // Not by what the flow is started with.
        for evil in ["https://evil.example/linked", "https://app.example.com.evil.example/linked", "//evil.example",
            "https://app.example.com/linked?error=x", "https://app.example.com/linked#@evil.example"] {
            let request = v1::StartLinkRequest {
                user_id: "u".into(),
                provider: "sandbox".into(),
                redirect_url: evil.into(),
                ..Default::default()
            };
            let refused = harness.accounts().start_link(request).await.unwrap_err();
            assert_eq!(reason(&refused), "REDIRECT_URL_NOT_ALLOWED", "{evil}");
        }
        // Not by what the callback brings.
        for decision in ["approve", "cancel"] {
            let started = harness.start_link("u").await;
            let mut callback = harness.decide(&started.authorization_url, "demo", decision).await;
            callback.query_pairs_mut().append_pair("redirect_url", "https://evil.example/")
                .append_pair("redirect_uri", "https://evil.example/").append_pair("error_uri", "https://evil.example/");
            let end = location(&harness.http.get(callback).header("referer", "https://evil.example/").send().await.unwrap());
            assert_eq!(end.as_str().split('?').next(), Some(APP_URL));
            assert_eq!(end.query_pairs().count(), 1, "a ticket or an error, and nothing that the callback brought");
        }
        // Not by a flow whose end was taken off the list meanwhile.
        let (yes, no) = (harness.start_link("u").await, harness.start_link("u").await);
        let listed = harness.redirect_urls().list_redirect_urls(v1::ListRedirectUrlsRequest::default()).await.unwrap();
        let redirect_url_id = listed.into_inner().redirect_urls[0].id.clone();
        harness.redirect_urls().delete_redirect_url(v1::DeleteRedirectUrlRequest { redirect_url_id }).await.unwrap();
        for (started, decision) in [(yes, "approve"), (no, "cancel")] {
            let callback = harness.decide(&started.authorization_url, "demo", decision).await;
            let answer = harness.http.get(callback).send().await.unwrap();
            assert_eq!(answer.status(), 400, "{decision}");
            assert!(answer.headers().get("location").is_none(), "{decision}");
        }
        assert!(harness.exchanges().is_empty());
    }
}

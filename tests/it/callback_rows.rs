//! Callbacks that are looked at or come by a form (OAuth 2.0 Form Post Response Mode), and providers whose URLs have
//! parts of the user.

use std::time::Duration;

use token_wallet::proto::v1;
use token_wallet::proto::v1::complete_link_request::Proof;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::browser::{location, parameter};
use crate::support::harness::{APP_URL, Harness, on_both_engines, reason};

impl Harness {
    /// The provider `forms`, which sends browsers back by forms, or as the query does.
    async fn provider_of(&self, slug: &str, catalog_entry: &str) {
        let request = v1::CreateProviderRequest {
            slug: slug.into(),
            catalog_entry: catalog_entry.into(),
            client_id: token_wallet::sandbox::DEFAULT_CLIENT_ID.into(),
            client_secret: token_wallet::sandbox::DEFAULT_CLIENT_SECRET.into(),
            ..Default::default()
        };
        self.providers().create_provider(request).await.unwrap();
    }
}

/// The values of an attribute in a page, in order, with what was escaped as it was.
fn attributes(page: &str, before: &str) -> Vec<String> {
    let starts = page.split(before).skip(1);
    let values = starts.map(|rest| rest.split('"').next().unwrap());
    values.map(|value| value.replace("&amp;", "&").replace("&#38;", "&").replace("&#39;", "'")).collect()
}

on_both_engines! {
    async fn a_look_at_a_callback_spends_nothing(engine) {
        let harness = Harness::start(engine).await;
        let started = harness.start_link("u").await;
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        for _ in 0..2 {
            let looked = harness.http.head(callback.clone()).send().await.unwrap();
            assert_eq!(looked.status(), 200);
            assert!(looked.headers().get("location").is_none());
        }
        harness.complete("u", &harness.ticket_of(callback).await).await.unwrap();
    }

    async fn a_callback_by_a_form_goes_on_by_get_on_a_page_of_our_own(engine) {
        let harness = Harness::start(engine).await;
        harness.provider_of("forms", "sandbox_form_post").await;
        let request = v1::StartLinkRequest {
            user_id: "u".into(),
            provider: "forms".into(),
            redirect_url: APP_URL.into(),
            ..Default::default()
        };
        let started = harness.accounts().start_link(request).await.unwrap().into_inner();
        let url: reqwest::Url = started.authorization_url.parse().unwrap();
        assert_eq!(parameter(&url, "response_mode").as_deref(), Some("form_post"));
        // The provider's page has a form for the callback.
        let decision = [("person", "demo"), ("decision", "approve")];
        let page = harness.http.post(url).form(&decision).send().await.unwrap().text().await.unwrap();
        let callback = attributes(&page, "action=\"").remove(0);
        assert_eq!(callback, harness.web("/oauth/callback/forms"));
        let (names, values) = (attributes(&page, "name=\""), attributes(&page, "value=\""));
        let form: Vec<_> = names.iter().filter(|name| *name != "viewport").zip(values).collect();
        assert!(form.len() == 3, "{form:?}");
        let posted = harness.http.post(&callback).header("origin", harness.sandbox.base_url()).form(&form);
        let posted = posted.send().await.unwrap();
        assert_eq!(posted.status(), 200);
        let policy = posted.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("script-src"), "{policy}");
        assert_eq!((&posted.headers()["referrer-policy"], &posted.headers()["cache-control"]), (&"no-referrer".parse().unwrap(), &"no-store".parse().unwrap()));
        let page = posted.text().await.unwrap();
        let next = attributes(&page, "content=\"0;url=").remove(0);
        assert!(next.starts_with('?'), "at the same address, whatever the Host header says");
        assert_eq!(attributes(&page, "href=\""), std::slice::from_ref(&next));
        let states = harness.database().await.texts("SELECT state FROM flows").await;
        assert_eq!(states, ["started"], "the post itself takes nothing");
        let answer = harness.http.get(format!("{callback}{next}")).send().await.unwrap();
        let proof = Some(Proof::RedirectedUrl(location(&answer).into()));
        let request = v1::CompleteLinkRequest { user_id: "u".into(), proof };
        harness.accounts().complete_link(request).await.unwrap();
        assert!(harness.is_accepted(&harness.get_at("forms", "u").await.unwrap().access_token).await);
    }

    async fn a_provider_with_an_address_for_each_tenant_is_called_there_for_its_accounts(engine) {
        let harness = Harness::start(engine).await;
        harness.provider_of("tenants", "sandbox_tenants").await;
        let start = async |user: &str, parts: &[(&str, &str)]| {
            let parts = parts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let request = v1::StartLinkRequest {
                user_id: user.into(),
                provider: "tenants".into(),
                redirect_url: APP_URL.into(),
                provider_params: parts.collect(),
                ..Default::default()
            };
            harness.accounts().start_link(request).await.map(tonic::Response::into_inner)
        };
        for bad in [&[][..], &[("tenant", "../other")], &[("tenant", "a@evil.example")], &[("tenant", "acme"), ("shop", "x")]] {
            let refused = start("u", bad).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{bad:?}");
            let fields = refused.get_error_details().bad_request().unwrap().field_violations.clone();
            assert_eq!(fields[0].field, "provider_params");
            assert!(!refused.message().contains("evil"), "{}", refused.message());
        }
        // The sandbox has one tenant. Its token and profile endpoints answer there, too: the link is made and refreshed.
        let started = start("u", &[("tenant", "acme")]).await.unwrap();
        assert!(started.authorization_url.starts_with(&format!("{}/tenants/acme/authorize?", harness.sandbox.base_url())));
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let linked = harness.complete("u", &harness.ticket_of(callback).await).await.unwrap();
        harness.pass(Duration::from_hours(2));
        let token = harness.get_at("tenants", "u").await.unwrap();
        assert!(harness.is_accepted(&token.access_token).await);
        assert_eq!(token.provider_metadata["tenant"], "acme");
        // A reauthorization goes to where the account is, and nowhere else.
        let account = linked.external_account.unwrap();
        let request = v1::StartReauthorizationRequest {
            external_account_id: account.id,
            redirect_url: APP_URL.into(),
            ..Default::default()
        };
        let provider_params = [("tenant".to_owned(), "other".to_owned())].into();
        let other = v1::StartReauthorizationRequest { provider_params, ..request.clone() };
        let refused = harness.accounts().start_reauthorization(other).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
        let started = harness.accounts().start_reauthorization(request).await.unwrap().into_inner();
        assert!(started.authorization_url.contains("/tenants/acme/"), "{}", started.authorization_url);
        // A tenant that is not there gives no code's answer.
        let started = start("v", &[("tenant", "nobody")]).await.unwrap();
        assert!(started.authorization_url.contains("/tenants/nobody/"));
    }

    async fn a_form_is_taken_only_where_the_provider_sends_forms_and_shows_nothing_of_its_own(engine) {
        let harness = Harness::start(engine).await;
        harness.provider_of("forms", "sandbox_form_post").await;
        let form = [("state", "\"><script>alert(1)</script>"), ("code", "a"), ("code", "b"), ("user", "<b>")];
        for (path, status) in [("sandbox", 405), ("nonesuch", 405), ("not a slug", 405), ("forms", 200)] {
            let posted = harness.http.post(harness.web(&format!("/oauth/callback/{path}"))).form(&form).send().await.unwrap();
            assert_eq!(posted.status(), status, "{path}");
            let page = posted.text().await.unwrap();
            assert!(!page.contains("<script") && !page.contains("user"), "{page}");
            assert_eq!(page.contains("code=a&#38;code=b"), status == 200, "what stands twice is judged as in a query");
        }
        let huge = [("state", "s".repeat(1 << 20))];
        let posted = harness.http.post(harness.web("/oauth/callback/forms")).form(&huge).send().await.unwrap();
        assert_eq!(posted.status(), 413);
    }
}

//! The web door: what browsers get besides redirects, and what operators' probes get.

use reqwest::Method;
use reqwest::header::HeaderMap;
use token_wallet::proto::v1;

use crate::support::browser::{location, parameter};
use crate::support::harness::{APP_URL, Engine, Harness, on_both_engines, until};

/// What every answer of the web listener must have.
fn assert_hardened(headers: &HeaderMap, of: &str) {
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ] {
        assert_eq!(headers[name], value, "{of}");
    }
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{of}: {policy}");
    for word in ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(word), "{of}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("script"), "{of}: {policy}");
}

on_both_engines! {
    async fn every_page_is_plain_and_hardened(engine) {
        let harness = Harness::start(engine).await;
        let own_page = v1::StartLinkRequest { user_id: "u".into(), provider: "sandbox".into(), ..Default::default() };
        let finished = harness.accounts().start_link(own_page.clone()).await.unwrap().into_inner();
        let finished = harness.decide(&finished.authorization_url, "demo", "approve").await.to_string();
        let denied = harness.accounts().start_link(own_page).await.unwrap().into_inner();
        let denied = harness.decide(&denied.authorization_url, "demo", "cancel").await.to_string();
        for (method, url, status, told) in [
            (Method::GET, finished, 200, "One call to go"),
            (Method::GET, denied, 400, "The authorization was not given"),
            (Method::GET, harness.web("/oauth/callback/sandbox?state=x&code=y"), 400, "This link cannot be used"),
            (Method::GET, harness.web("/oauth/callback/%3Cscript%3E?state=x"), 400, "This link cannot be used"),
            (Method::GET, harness.web("/<script>alert(1)</script>"), 404, "Nothing here"),
            (Method::GET, harness.web("/"), 404, "Nothing here"),
            (Method::POST, harness.web("/oauth/callback/sandbox"), 405, "Not like this"),
            (Method::PUT, harness.web("/oauth/callback/sandbox"), 405, "Not like this"),
            (Method::DELETE, harness.web("/oauth/callback/sandbox"), 405, "Not like this"),
        ] {
            let answer = harness.http.request(method, &url).send().await.unwrap();
            assert_eq!(answer.status(), status, "{url}");
            assert_hardened(answer.headers(), &url);
            assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
            if status == 405 {
                assert!(answer.headers()["allow"].to_str().unwrap().contains("GET"), "{:?}", answer.headers());
            }
            let html = answer.text().await.unwrap();
            assert!(html.contains(told), "{url}: {html}");
            for part in ["<html lang=\"en\">", "<meta name=\"viewport\"", "<title>", "<main><h1>", "color-scheme"] {
                assert!(html.contains(part), "{url}: {part} is not in {html}");
            }
            assert!(!html.contains("<script") && !html.contains("alert"), "{html}");
        }
    }

    async fn a_redirect_is_hardened_and_a_head_takes_no_flow_on(engine) {
        let harness = Harness::start(engine).await;
        let started = harness.start_link("u").await;
        let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
        let looked = harness.http.head(callback.clone()).send().await.unwrap();
        assert_eq!(looked.status(), 200);
        assert_hardened(looked.headers(), "HEAD");
        let answer = harness.http.get(callback).send().await.unwrap();
        assert_eq!(answer.status(), 303);
        assert_hardened(answer.headers(), "303");
        assert!(location(&answer).query().unwrap().contains("ticket="));
    }

    async fn c11_headers_that_claim_another_host_change_no_page_and_no_url(engine) {
        let harness = Harness::start(engine).await;
        for name in ["x-forwarded-host", "forwarded", "x-original-host"] {
            let value = if name == "forwarded" { "host=evil.example;proto=https" } else { "evil.example" };
            let started = harness.start_link("u").await;
            let asked = parameter(&started.authorization_url.parse().unwrap(), "redirect_uri").unwrap();
            assert_eq!(asked, harness.web("/oauth/callback/sandbox"));
            let callback = harness.decide(&started.authorization_url, "demo", "approve").await;
            let answer = harness.http.get(callback).header(name, value).send().await.unwrap();
            assert!(location(&answer).as_str().starts_with(APP_URL));
            assert!(!format!("{:?}", answer.headers()).contains("evil.example"));
        }
        let request = harness.http.get(harness.web("/nothing")).header("host", "evil.example");
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), 421);
        assert_hardened(refused.headers(), "421");
        assert!(!refused.text().await.unwrap().contains("evil.example"));
    }

    async fn probes_and_metrics_answer_as_their_readers_expect(engine) {
        let harness = Harness::start(engine).await;
        until("it is ready", async || harness.http.get(harness.ops("/readyz")).send().await.unwrap().status() == 200).await;
        for (path, kind) in [
            ("/livez", "text/plain; charset=utf-8"),
            ("/readyz", "text/plain; charset=utf-8"),
            ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ] {
            for method in [Method::GET, Method::HEAD] {
                let answer = harness.http.request(method.clone(), harness.ops(path)).send().await.unwrap();
                assert_eq!(answer.status(), 200, "{method} {path}");
                assert_eq!(answer.headers()["content-type"], kind);
                assert_eq!(answer.headers()["cache-control"], "no-store");
                assert_eq!(answer.text().await.unwrap().is_empty(), method == Method::HEAD, "{path}");
            }
            let posted = harness.http.post(harness.ops(path)).send().await.unwrap();
            assert_eq!((posted.status().as_u16(), posted.headers()["allow"].to_str().unwrap()), (405, "GET,HEAD"));
        }
        assert_eq!(harness.http.get(harness.ops("/else")).send().await.unwrap().status(), 404);
    }
}

#[tokio::test]
async fn readiness_fails_and_liveness_does_not_while_the_store_is_away() {
    let harness = Harness::start(Engine::Postgres).await;
    harness.cut_database().await;
    until("it is not ready", async || harness.http.get(harness.ops("/readyz")).send().await.unwrap().status() == 503)
        .await;
    assert_eq!(harness.http.get(harness.ops("/livez")).send().await.unwrap().status(), 200);
    harness.mend_database().await;
    until("it is ready again", async || harness.http.get(harness.ops("/readyz")).send().await.unwrap().status() == 200)
        .await;
}

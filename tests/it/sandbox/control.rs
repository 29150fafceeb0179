//! The request log, the settings, and what becomes of a request whose caller or sandbox goes away.

use super::*;

#[tokio::test]
async fn the_log_tells_who_spent_what_by_fingerprint_and_never_a_secret() {
    let scene = Scene::new(Options { secret_prefix: Some("canary-7".into()), ..Options::default() }).await;
    let code = scene.code(ALL).await;
    let first = scene.exchange(&code, VERIFIER).await.1;
    scene.refresh(text(&first, "refresh_token")).await;
    scene.refresh(text(&first, "refresh_token")).await;
    assert!(scene.lives(text(&first, "access_token")).await);
    let (_, log) = scene.get("/_sandbox/requests?since=2").await;
    assert_eq!((&log["last_sequence"], log["requests"].as_array().unwrap().len()), (&json!(5), 3));

    let seen = scene.sandbox.requests();
    let fingerprint = |answer: &Value, field| Some(Sandbox::fingerprint(text(answer, field)));
    let [approved, exchanged, once, twice, asked] = &seen[..] else { panic!("{} requests", seen.len()) };
    assert_eq!(approved.issued.code, Some(Sandbox::fingerprint(&code)));
    assert_eq!(exchanged.presented.code, approved.issued.code);
    assert_eq!(exchanged.issued.refresh_token, fingerprint(&first, "refresh_token"));
    assert_eq!((once.status, once.error.as_deref()), (200, None));
    assert_eq!((twice.status, twice.error.as_deref()), (400, Some("invalid_grant")));
    assert_eq!(once.presented, twice.presented);
    assert_eq!(once.presented.refresh_token, exchanged.issued.refresh_token);
    assert_eq!(asked.presented.access_token, fingerprint(&first, "access_token"));
    assert!(seen[1..].iter().all(|request| request.family.is_some() && request.family == once.family));
    assert_eq!((once.client_id.as_deref(), once.grant_type.as_deref()), (Some("sandbox"), Some("refresh_token")));
    assert_eq!((once.sequence, once.time), (3, 1_800_000_000_000));
    let written = serde_json::to_string(&seen).unwrap();
    assert!(code.starts_with("canary-7sbx_ac_") && !written.contains("canary") && !written.contains("sbx_"));

    assert_eq!(scene.http.delete(scene.url("/_sandbox/requests")).send().await.unwrap().status(), 204);
    assert_eq!(scene.get("/_sandbox/requests").await.1, json!({ "requests": [], "last_sequence": 5 }));
}

#[tokio::test]
async fn settings_change_while_it_runs_and_nonsense_changes_nothing() {
    let scene = Scene::plain().await;
    let (status, changed) =
        scene.put("/_sandbox/settings", &json!({ "token_ttl_seconds": 20, "rotation": { "grace_seconds": 5 } })).await;
    assert_eq!((status, &changed["code_ttl_seconds"]), (StatusCode::OK, &json!(60)));
    assert_eq!(scene.sandbox.settings().rotation, Rotation::Grace(Duration::from_secs(5)));
    assert_eq!(scene.linked(ALL).await["expires_in"], 20);
    for nonsense in [json!({ "token_ttl": 1 }), json!({ "token_ttl_seconds": -1 }), json!([1])] {
        assert_eq!(scene.put("/_sandbox/settings", &nonsense).await.0, 400);
    }
    assert_eq!(scene.get("/_sandbox/settings").await.1, changed);
}

#[tokio::test]
async fn what_has_arrived_is_done_even_if_its_caller_goes_away() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let old = text(&first, "refresh_token");
    scene.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
    tokio::select! {
        _ = scene.refresh(old) => panic!("the answer was not held"),
        () = scene.sandbox.wait_held(1) => {}
    }
    let nobody_waits = async { while scene.get("/_sandbox/faults").await.1["held"] != 0 {} };
    tokio::time::timeout(Duration::from_secs(5), nobody_waits).await.unwrap();
    scene.sandbox.release();
    let done = async {
        while scene.last(Endpoint::Token).grant_type.as_deref() != Some("refresh_token") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), done).await.unwrap();
    assert_eq!(scene.last(Endpoint::Token).status, 200, "the caller is gone, the token is spent");
    assert_eq!(refused(scene.refresh(old).await), "invalid_grant");
}

#[tokio::test]
async fn a_shutdown_answers_what_is_held_and_frees_the_port() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    scene.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
    let (url, addr) = (scene.url("/token"), scene.sandbox.addr());
    let form = [("grant_type", "refresh_token"), ("refresh_token", text(&first, "refresh_token"))];
    let held = scene.http.post(url).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET)).form(&form).send();
    let sandbox = scene.sandbox;
    let stop = async {
        sandbox.wait_held(1).await;
        sandbox.shutdown().await;
    };
    let (answer, ()) = tokio::join!(held, stop);
    assert_eq!(answer.unwrap().status(), 200);
    let again = sandbox::start(Options { addr, ..Options::default() }).await.unwrap();
    assert_eq!(again.addr(), addr);
}

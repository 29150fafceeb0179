//! What the sandbox knows of its grants: the oracle of tests that must not redeem a refresh token twice.

use super::*;

impl Scene {
    fn grant(&self, person: &str) -> Grant {
        self.sandbox.grants_of(person).pop().unwrap()
    }
}

#[tokio::test]
async fn a_grant_tells_whose_it_is_its_newest_tokens_and_what_was_done_with_it() {
    let scene = Scene::new(Options { rotation: Rotation::Grace(Duration::from_secs(30)), ..Options::default() }).await;
    let first = scene.linked_as("alice", ALL).await;
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    let third = scene.refresh(text(&first, "refresh_token")).await.1;
    scene.hand.advance(Duration::from_secs(30));
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    assert_ne!(second["refresh_token"], third["refresh_token"]);
    scene.sandbox.set_faults([Rule::refresh(Effect::error(503, "x"))]);
    scene.refresh(text(&first, "refresh_token")).await;
    let grant = scene.grant("alice");
    assert_eq!((grant.person.as_str(), grant.client_id.as_str()), ("alice", DEFAULT_CLIENT_ID));
    assert_eq!((grant.approved_at, grant.ended), (1_800_000_000_000, None));
    assert_eq!(grant.refresh_token, Some(Sandbox::fingerprint(text(&third, "refresh_token"))));
    assert_eq!(grant.access_token, Some(Sandbox::fingerprint(text(&third, "access_token"))));
    assert_eq!((grant.redemptions, grant.rotations), (2, 2));
    assert_eq!((grant.grace_repeats, grant.reuses, grant.max_overlap), (1, 2, 1));
    let reuses: Vec<_> = scene.sandbox.requests()[2..].iter().map(|request| (request.rotated, request.reuse)).collect();
    let dead = (false, Some(Reuse::Dead));
    assert_eq!(reuses, [(true, None), (true, Some(Reuse::InGrace)), dead, dead], "whoever answers");
    let last = scene.last(Endpoint::Token);
    assert_eq!((last.person.as_deref(), last.family.as_ref()), (Some("alice"), Some(&grant.id)));

    scene.linked_as("bob", ALL).await;
    let (_, told) = scene.get("/_sandbox/grants?person=alice").await;
    assert_eq!(serde_json::from_value::<Vec<Grant>>(told["grants"].clone()).unwrap(), [grant]);
    assert_eq!(
        told["totals"],
        json!({ "grants": 2, "redemptions": 2, "rotations": 2, "reuses": 2, "grace_repeats": 1, "max_overlap": 1 })
    );
    assert_eq!(scene.sandbox.grants().len(), 2);
}

#[tokio::test]
async fn refreshes_under_way_at_once_are_counted_until_they_are_answered_or_their_caller_leaves() {
    let scene = Scene::plain().await;
    let (alice, bob) = (scene.linked_as("alice", ALL).await, scene.linked_as("bob", ALL).await);
    scene.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
    let release = async {
        scene.sandbox.wait_held(3).await;
        scene.sandbox.release();
    };
    let refresh = |tokens| scene.refresh(text(tokens, "refresh_token"));
    let (one, other, _, ()) = tokio::join!(refresh(&alice), refresh(&alice), refresh(&bob), release);
    assert_eq!([one.0, other.0].iter().filter(|status| **status == 200).count(), 1);
    assert_eq!((scene.grant("alice").max_overlap, scene.grant("bob").max_overlap), (2, 1));
    let mut overlaps: Vec<_> = scene.sandbox.requests()[4..].iter().map(|request| request.overlap).collect();
    overlaps.sort_unstable();
    assert_eq!(overlaps, [1, 1, 2]);

    let carol = scene.linked_as("demo", ALL).await;
    scene.sandbox.set_faults([Rule::refresh(Effect::Hold)]);
    tokio::select! {
        _ = refresh(&carol) => panic!("the answer was not held"),
        () = scene.sandbox.wait_held(1) => {}
    }
    for _ in 0..8 {
        // Round trips in which the sandbox sees that the connection is gone.
        assert_eq!(scene.get("/jwks").await.0, 200);
    }
    let release = async {
        scene.sandbox.wait_held(1).await;
        scene.sandbox.release();
    };
    tokio::join!(refresh(&carol), release);
    assert_eq!(scene.grant("demo").max_overlap, 1);
}

#[tokio::test]
async fn a_dead_grant_says_why() {
    let ended = |scene: &Scene, person| scene.grant(person).ended;
    let scene = Scene::new(Options { reuse_revokes_family: true, ..Options::default() }).await;

    let tokens = scene.linked_as("demo", ALL).await;
    scene.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(ended(&scene, "demo"), None);
    scene.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(ended(&scene, "demo"), Some(Ending::Reuse));

    let code = scene.code_of("demo", ALL).await;
    scene.exchange(&code, VERIFIER).await;
    scene.exchange(&code, VERIFIER).await;
    assert_eq!(ended(&scene, "demo"), Some(Ending::CodeReuse));

    let tokens = scene.linked_as("demo", ALL).await;
    scene.revoke(text(&tokens, "refresh_token")).await;
    assert_eq!(ended(&scene, "demo"), Some(Ending::Revoked));

    let (tokens, other) = (scene.linked_as("demo", ALL).await, scene.linked_as("bob", ALL).await);
    scene.linked_as("demo", ALL).await;
    let withdrawn = scene.http.post(scene.url("/_sandbox/grants/demo/revoke")).send().await.unwrap();
    assert_eq!(read(withdrawn).await.1, json!({ "revoked": 2 }));
    assert_eq!(ended(&scene, "demo"), Some(Ending::Person));
    assert_eq!(refused(scene.refresh(text(&tokens, "refresh_token")).await), "invalid_grant");
    assert!(!scene.lives(text(&tokens, "access_token")).await && scene.lives(text(&other, "access_token")).await);
    assert_eq!(scene.sandbox.revoke("demo").unwrap(), 0);
    let stranger = scene.http.post(scene.url("/_sandbox/grants/eve/revoke")).send().await.unwrap();
    assert_eq!(refused(read(stranger).await), "invalid_request");

    scene.linked_as("alice", "openid").await;
    scene.hand.advance(Duration::from_hours(1));
    assert_eq!(ended(&scene, "alice"), Some(Ending::Expired), "it has no refresh token");
    assert_eq!(ended(&scene, "bob"), None);
    scene.hand.advance(Duration::from_hours(30 * 24));
    assert_eq!(ended(&scene, "bob"), Some(Ending::Expired));
}

#[tokio::test]
async fn a_refresh_token_dies_of_idleness_and_a_consent_of_age() {
    let scene = Scene::plain().await;
    scene
        .put("/_sandbox/settings", &json!({ "refresh_ttl_seconds": 5 * 86_400, "consent_ttl_seconds": 9 * 86_400 }))
        .await;
    let (idle, mut tokens) = (scene.linked_as("bob", ALL).await, scene.linked_as("alice", ALL).await);
    for _ in 0..2 {
        scene.hand.advance(Duration::from_hours(4 * 24));
        tokens = scene.refresh(text(&tokens, "refresh_token")).await.1;
    }
    assert_eq!(refused(scene.refresh(text(&idle, "refresh_token")).await), "invalid_grant");
    scene.hand.advance(Duration::from_mins(23 * 60 + 30));
    tokens = scene.refresh(text(&tokens, "refresh_token")).await.1;
    scene.hand.advance(Duration::from_mins(30));
    assert_eq!(refused(scene.refresh(text(&tokens, "refresh_token")).await), "invalid_grant");
    assert!(scene.lives(text(&tokens, "access_token")).await, "what was given lives its life");
    assert_eq!(scene.grant("alice").ended, Some(Ending::Expired));
}

#[tokio::test]
async fn the_log_keeps_as_many_requests_as_it_is_told() {
    let scene = Scene::plain().await;
    scene.put("/_sandbox/settings", &json!({ "log_limit": 2 })).await;
    scene.linked(ALL).await;
    scene.get("/jwks").await;
    let sequences = |since| -> Vec<u64> { scene.sandbox.requests_since(since).iter().map(|it| it.sequence).collect() };
    assert_eq!((sequences(0), sequences(2)), (vec![2, 3], vec![3]));
}

#[tokio::test]
async fn what_is_known_of_a_grant_outlives_a_restart_but_for_its_counters() {
    let folder = TempDir::new().unwrap();
    let kept = || Options { state_file: Some(folder.path().join("sandbox.jsonl")), ..Options::default() };
    let scene = Scene::new(kept()).await;
    let mut tokens = scene.linked_as("alice", ALL).await;
    for _ in 0..3 {
        scene.hand.advance(Duration::from_secs(1));
        tokens = scene.refresh(text(&tokens, "refresh_token")).await.1;
    }
    let before = scene.grant("alice");
    scene.sandbox.shutdown().await;
    let scene = Scene::new(kept()).await;
    assert_eq!(scene.grant("alice"), Grant { redemptions: 0, rotations: 0, max_overlap: 0, ..before });
}

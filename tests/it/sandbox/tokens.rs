//! Refresh, rotation, revocation, userinfo, and what survives a restart.

use super::*;

#[tokio::test]
async fn using_a_code_twice_revokes_what_it_gave() {
    let scene = Scene::plain().await;
    let code = scene.code(ALL).await;
    let tokens = scene.exchange(&code, VERIFIER).await.1;
    assert!(scene.lives(text(&tokens, "access_token")).await);
    assert_eq!(refused(scene.exchange(&code, VERIFIER).await), "invalid_grant");
    assert!(!scene.lives(text(&tokens, "access_token")).await);
    assert_eq!(refused(scene.refresh(text(&tokens, "refresh_token")).await), "invalid_grant");
}

#[tokio::test]
async fn rotation_always_kills_the_old_refresh_token_and_only_it() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    assert!(scene.lives(text(&second, "access_token")).await && scene.lives(text(&first, "access_token")).await);
    assert_eq!(scene.refresh(text(&second, "refresh_token")).await.0, 200);
}

#[tokio::test]
async fn rotation_never_keeps_the_refresh_token_and_does_not_repeat_it() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    for _ in 0..2 {
        let (status, next) = scene.refresh(text(&first, "refresh_token")).await;
        assert_eq!((status, next.get("refresh_token")), (StatusCode::OK, None));
        assert_ne!(first["access_token"], next["access_token"]);
    }
    scene.hand.advance(Duration::from_hours(30 * 24));
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
}

#[tokio::test]
async fn rotation_with_grace_answers_an_old_token_until_the_grace_ends() {
    let scene = Scene::new(Options { rotation: Rotation::Grace(Duration::from_secs(30)), ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    scene.hand.advance(Duration::from_secs(29));
    let twin = scene.refresh(text(&first, "refresh_token")).await.1;
    assert_ne!(second["refresh_token"], twin["refresh_token"]);
    scene.hand.advance(Duration::from_secs(1));
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    for successor in [second, twin] {
        assert_eq!(scene.refresh(text(&successor, "refresh_token")).await.0, 200);
    }
}

#[tokio::test]
async fn reuse_ends_the_family_where_that_is_the_rule() {
    let scene = Scene::new(Options { reuse_revokes_family: true, ..Options::default() }).await;
    let (first, other) = (scene.linked(ALL).await, scene.linked(ALL).await);
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    assert!(!scene.lives(text(&second, "access_token")).await);
    assert_eq!(refused(scene.refresh(text(&second, "refresh_token")).await), "invalid_grant");
    assert!(scene.lives(text(&other, "access_token")).await, "another consent of the same person goes on");
}

#[tokio::test]
async fn a_client_can_have_manners_of_its_own() {
    let scene = Scene::plain().await;
    let manners = json!({ "token_ttl_seconds": 60, "rotation": "never" });
    let (_, settings) = scene.put("/_sandbox/settings", &json!({ "clients": { DEFAULT_CLIENT_ID: manners } })).await;
    assert_eq!(settings["clients"][DEFAULT_CLIENT_ID]["reuse_revokes_family"], Value::Null, "as for all");
    let first = scene.linked(ALL).await;
    let (status, next) = scene.refresh(text(&first, "refresh_token")).await;
    assert_eq!((status, &next["expires_in"], next.get("refresh_token")), (StatusCode::OK, &json!(60), None));
    let manners = json!({ "rotation": "always", "reuse_revokes_family": true });
    scene.put("/_sandbox/settings", &json!({ "clients": { DEFAULT_CLIENT_ID: manners } })).await;
    let (_, next) = scene.refresh(text(&first, "refresh_token")).await;
    assert_eq!((&next["expires_in"], scene.sandbox.accepts(text(&next, "access_token"))), (&json!(3600), true));
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    assert!(!scene.sandbox.accepts(text(&next, "access_token")), "its family is ended");
    let (status, _) = scene.put("/_sandbox/settings", &json!({ "clients": { "stranger": {} } })).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_refresh_can_narrow_its_scopes_and_never_widen_them() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked("openid profile offline_access").await;
    let form =
        |scope| [("grant_type", "refresh_token"), ("refresh_token", text(&first, "refresh_token")), ("scope", scope)];
    let (_, narrow) = read(scene.token(&form("openid")).await).await;
    assert_eq!(narrow["scope"], "openid");
    assert_eq!(read(scene.userinfo(text(&narrow, "access_token")).await).await.1, json!({ "sub": "person-demo" }));
    assert_eq!(refused(read(scene.token(&form("openid email")).await).await), "invalid_scope");
}

#[tokio::test]
async fn revoking_an_access_token_ends_it_and_revoking_a_refresh_token_ends_all() {
    let mut options = Options::default();
    options.clients.push(Client::public("phone", RedirectRule::Loopback));
    let scene = Scene::new(options).await;
    let first = scene.linked(ALL).await;
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    let foreign = [("token", text(&second, "refresh_token")), ("client_id", "phone")];
    let foreign = scene.http.post(scene.url("/revoke")).form(&foreign).send().await.unwrap();
    assert_eq!(refused(read(foreign).await), "unauthorized_client");
    assert_eq!(scene.revoke("sbx_at_nothing").await, 200);
    assert_eq!(scene.revoke(text(&first, "access_token")).await, 200);
    assert!(!scene.lives(text(&first, "access_token")).await);
    assert!(scene.lives(text(&second, "access_token")).await);
    assert_eq!(scene.revoke(text(&second, "refresh_token")).await, 200);
    assert!(!scene.lives(text(&second, "access_token")).await);
    assert_eq!(refused(scene.refresh(text(&second, "refresh_token")).await), "invalid_grant");
}

#[tokio::test]
async fn userinfo_refuses_expired_missing_and_doubled_tokens() {
    let scene = Scene::new(Options { token_ttl: Duration::from_mins(1), ..Options::default() }).await;
    let tokens = scene.linked(ALL).await;
    let token = text(&tokens, "access_token");
    scene.hand.advance(Duration::from_millis(59_999));
    assert!(scene.lives(token).await);
    let posted = scene.http.post(scene.url("/userinfo")).form(&[("access_token", token)]).send().await.unwrap();
    assert_eq!(posted.status(), 200);
    let doubled = scene.http.post(scene.url("/userinfo")).bearer_auth(token).form(&[("access_token", token)]);
    assert_eq!(refused(read(doubled.send().await.unwrap()).await), "invalid_request");
    scene.hand.advance(Duration::from_millis(1));
    let late = scene.userinfo(token).await;
    assert_eq!(late.status(), 401);
    assert_eq!(late.headers()["www-authenticate"], "Bearer realm=\"sandbox\", error=\"invalid_token\"");
    let bare = scene.http.get(scene.url("/userinfo")).send().await.unwrap();
    assert_eq!(bare.headers()["www-authenticate"], "Bearer realm=\"sandbox\"");
}

#[tokio::test]
async fn malformed_requests_get_the_shape_of_rfc_6749() {
    let scene = Scene::plain().await;
    assert_eq!(refused(read(scene.token(&[("grant_type", "password")]).await).await), "unsupported_grant_type");
    assert_eq!(refused(read(scene.token(&[("code", "x")]).await).await), "invalid_request");
    let twice = [("grant_type", "refresh_token"), ("refresh_token", "a"), ("refresh_token", "b")];
    assert_eq!(refused(read(scene.token(&twice).await).await), "invalid_request");
    let json = scene.http.post(scene.url("/token")).json(&json!({ "grant_type": "refresh_token" }));
    assert_eq!(refused(read(json.send().await.unwrap()).await), "invalid_request");
    let huge = "x".repeat(64 * 1024 + 1);
    for path in ["/token", "/revoke", "/authorize"] {
        let answer = scene.http.post(scene.url(path)).form(&[("token", &huge)]).send().await.unwrap();
        assert_eq!(answer.status(), 413, "{path}");
    }
    let noise = scene.http.post(scene.url("/token")).header("content-type", "application/x-www-form-urlencoded");
    let noise = noise.header("authorization", &b"Basic \xff%%%"[..]).body(vec![0xff, 0xfe, b'&', b'=', b'%', 0]);
    assert_eq!(refused(read(noise.send().await.unwrap()).await), "invalid_request");
}

#[tokio::test]
async fn noise_on_the_wire_ends_its_connection_and_nothing_else() {
    let scene = Scene::plain().await;
    let long = format!("GET /jwks HTTP/1.1\r\nhost: x\r\nnoise: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /jwks HTTP/1.1\r\n{}\r\n", "noise: x\r\n".repeat(1000));
    for noise in [&b"\x00\xff\x16\x03\r\n\r\n"[..], b"POST /token HTTP/1.1\r\n\r\n", long.as_bytes(), many.as_bytes()] {
        let mut wire = TcpStream::connect(scene.sandbox.addr()).await.unwrap();
        // The other side may hang up in the middle of it.
        let _ = wire.write_all(noise).await;
        let _ = wire.shutdown().await;
        let mut answer = Vec::new();
        let _ = wire.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(scene.get("/jwks").await.0, 200);
}

#[tokio::test]
async fn of_many_redemptions_at_once_one_succeeds() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let all = (0..32).map(|_| scene.refresh(text(&first, "refresh_token")));
    let outcomes = futures_util::future::join_all(all).await;
    assert_eq!(outcomes.iter().filter(|(status, _)| *status == 200).count(), 1);
}

#[tokio::test]
async fn the_state_file_survives_a_restart_and_a_torn_last_line() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("sandbox.jsonl");
    let kept = || Options { state_file: Some(path.clone()), ..Options::default() };
    let scene = Scene::new(kept()).await;
    let (tokens, gone) = (scene.linked(ALL).await, scene.linked(ALL).await);
    let used = scene.refresh(text(&tokens, "refresh_token")).await.1;
    scene.revoke(text(&gone, "refresh_token")).await;
    let unspent = scene.code(ALL).await;
    let key = scene.get("/jwks").await.1;
    assert!(sandbox::start(kept()).await.is_err(), "a state file belongs to one sandbox");
    let before = std::fs::read(&path).unwrap();
    scene.sandbox.shutdown().await;
    assert_eq!(std::fs::read(&path).unwrap(), before, "nothing waits for the shutdown to be written");
    assert!(!String::from_utf8(before).unwrap().contains("sbx_"), "only hashes are kept");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"[{\"change\":\"family_ended\",\"id\":\"fam").unwrap();
    for _ in 0..2 {
        let scene = Scene::new(kept()).await;
        assert_eq!(scene.get("/jwks").await.1, key);
        assert!(scene.lives(text(&used, "access_token")).await);
        assert!(!scene.lives(text(&gone, "access_token")).await);
        assert_eq!(refused(scene.refresh(text(&tokens, "refresh_token")).await), "invalid_grant");
        scene.sandbox.shutdown().await;
    }
    let scene = Scene::new(kept()).await;
    assert_eq!(scene.exchange(&unspent, VERIFIER).await.0, 200);
    assert_eq!(scene.refresh(text(&used, "refresh_token")).await.0, 200);
    scene.sandbox.shutdown().await;

    std::fs::write(&path, "not json\n[]\n").unwrap();
    let error = sandbox::start(kept()).await.err().unwrap();
    assert!(error.to_string().contains("line 1"), "{error}");
}

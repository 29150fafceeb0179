//! From discovery to the first tokens.

use super::*;

#[tokio::test]
async fn discovery_describes_the_endpoints_that_answer() {
    let scene = Scene::plain().await;
    let (status, metadata) = scene.get("/.well-known/openid-configuration").await;
    assert_eq!(status, 200);
    assert_eq!(metadata, scene.get("/.well-known/oauth-authorization-server").await.1);
    assert_eq!(text(&metadata, "issuer"), scene.sandbox.base_url());
    assert_eq!(metadata["code_challenge_methods_supported"], json!(["S256"]));
    for endpoint in ["authorization_endpoint", "token_endpoint", "revocation_endpoint", "userinfo_endpoint", "jwks_uri"]
    {
        let answer = scene.http.get(text(&metadata, endpoint)).send().await.unwrap();
        assert_ne!(answer.status(), 404, "{endpoint}");
    }
}

#[tokio::test]
async fn a_form_post_approves_and_the_code_gives_tokens_and_an_identity() {
    let scene = Scene::plain().await;
    let url = scene.authorization(ALL, &[("nonce", "n-1")]);
    let answer = scene.decide(url, &[("person", "alice"), ("decision", "approve")]).await;
    assert_eq!(answer.status(), 303);
    assert_eq!(told(&answer, "state").as_deref(), Some("st&te"));
    assert_eq!(told(&answer, "iss"), Some(scene.sandbox.base_url()));
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &told(&answer, "code").unwrap()),
        ("redirect_uri", REDIRECT),
        ("code_verifier", VERIFIER),
    ];
    let answer = scene.token(&form).await;
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let (_, tokens) = read(answer).await;
    assert!(text(&tokens, "access_token").starts_with("sbx_at_"));
    assert!(text(&tokens, "refresh_token").starts_with("sbx_rt_"));
    assert_eq!((&tokens["token_type"], &tokens["expires_in"]), (&json!("Bearer"), &json!(3600)));
    assert_eq!(text(&tokens, "scope"), ALL);
    let (_, person) = read(scene.userinfo(text(&tokens, "access_token")).await).await;
    assert_eq!(
        person,
        json!({ "sub": "person-alice", "name": "Alice", "preferred_username": "alice",
            "email": "alice@sandbox.example", "email_verified": true })
    );

    let (signed, signature) = text(&tokens, "id_token").rsplit_once('.').unwrap();
    let claims = BASE64URL_NOPAD.decode(signed.split_once('.').unwrap().1.as_bytes()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let at_hash = BASE64URL_NOPAD.encode(&Sha256::digest(text(&tokens, "access_token").as_bytes())[..16]);
    assert_eq!((text(&claims, "nonce"), text(&claims, "at_hash")), ("n-1", at_hash.as_str()));
    assert_eq!((text(&claims, "iss"), text(&claims, "aud")), (scene.sandbox.base_url().as_str(), DEFAULT_CLIENT_ID));
    assert_eq!((&claims["sub"], &claims["exp"]), (&person["sub"], &json!(1_800_003_600)));
    let key = scene.get("/jwks").await.1["keys"][0].clone();
    let mut point = vec![4];
    point.extend(["x", "y"].map(|axis| BASE64URL_NOPAD.decode(text(&key, axis).as_bytes()).unwrap()).concat());
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, point);
    key.verify(signed.as_bytes(), &BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap()).unwrap();
}

#[tokio::test]
async fn the_page_offers_people_carries_the_request_and_can_be_posted_as_it_stands() {
    let scene = Scene::plain().await;
    let url = scene.authorization("openid \u{3c}b\u{3e}", &[("login_hint", "bob@sandbox.example")]);
    let answer = scene.http.get(url.clone()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    let page = answer.text().await.unwrap();
    assert!(page.contains("name=\"state\" value=\"st&amp;te\""));
    assert!(page.contains("value=\"bob\" checked"));
    assert!(!page.contains("<b>") && !page.contains("<script"));
    let mut form: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    form.push(("decision".into(), "approve".into()));
    let answer = scene.http.post(scene.url("/authorize")).form(&form).send().await.unwrap();
    let tokens = scene.exchange(&told(&answer, "code").unwrap(), VERIFIER).await.1;
    let person = read(scene.userinfo(text(&tokens, "access_token")).await).await.1;
    assert_eq!(person["sub"], "person-bob", "login_hint decides where nobody is named");
    assert!(tokens.get("refresh_token").is_none(), "offline_access was not asked for");
}

#[tokio::test]
async fn requests_that_cannot_be_trusted_get_a_page_and_the_others_a_redirect() {
    let scene = Scene::plain().await;
    for (name, value) in [("client_id", "nobody"), ("redirect_uri", "https://example.com/"), ("redirect_uri", "")] {
        let mut url = scene.authorization(ALL, &[]);
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let changed = pairs.iter().map(|(key, old)| (key.as_str(), if key == name { value } else { old.as_str() }));
        url.query_pairs_mut().clear().extend_pairs(changed);
        let answer = scene.decide(url, &[("decision", "approve")]).await;
        assert_eq!((answer.status(), answer.headers().get("location")), (StatusCode::BAD_REQUEST, None));
    }
    for (more, error) in [
        (("prompt", "none"), "login_required"),
        (("request", "x"), "request_not_supported"),
        (("scope", "twice"), "invalid_request"),
        (("response_mode", "fragment"), "invalid_request"),
    ] {
        let answer = scene.http.get(scene.authorization(ALL, &[more])).send().await.unwrap();
        assert_eq!(told(&answer, "error").as_deref(), Some(error));
        assert_eq!(told(&answer, "state").as_deref(), Some("st&te"));
        assert_eq!(told(&answer, "iss"), Some(scene.sandbox.base_url()));
    }
    let plain = scene.authorization(ALL, &[]).as_str().replace("S256", "plain");
    let answer = scene.http.get(plain).send().await.unwrap();
    assert_eq!(told(&answer, "error").as_deref(), Some("invalid_request"));
    let answer = scene.decide(scene.authorization(ALL, &[]), &[("decision", "cancel")]).await;
    assert_eq!(told(&answer, "error").as_deref(), Some("access_denied"));
    let answer = scene.decide(scene.authorization(ALL, &[]), &[("decision", "approve"), ("person", "eve")]).await;
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn a_wrong_verifier_redirect_uri_client_or_a_late_code_gives_nothing() {
    let phone = Client::public("phone", RedirectRule::Loopback);
    let mut options = Options::default();
    options.clients.push(phone);
    let scene = Scene::new(options).await;
    let code = scene.code(ALL).await;
    let wrong = VERIFIER.replace('d', "e");
    assert_eq!(refused(scene.exchange(&code, &wrong).await), "invalid_grant");
    let form = [("grant_type", "authorization_code"), ("code", &code), ("code_verifier", VERIFIER)];
    assert_eq!(refused(read(scene.token(&form).await).await), "invalid_grant");
    let form = [form[0], form[1], form[2], ("redirect_uri", REDIRECT), ("client_id", "phone")];
    let answer = scene.http.post(scene.url("/token")).form(&form).send().await.unwrap();
    assert_eq!(refused(read(answer).await), "invalid_grant");
    let answer = scene.http.post(scene.url("/token")).basic_auth("sandbox", Some("no")).form(&form[..4]);
    let answer = answer.send().await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["www-authenticate"]),
        (StatusCode::UNAUTHORIZED, &"Basic realm=\"sandbox\"".parse().unwrap())
    );
    assert_eq!(read(answer).await.1["error"], "invalid_client");
    scene.hand.advance(Duration::from_mins(1));
    assert_eq!(refused(scene.exchange(&code, VERIFIER).await), "invalid_grant");
}

#[tokio::test]
async fn a_public_client_proves_itself_by_pkce_alone() {
    let options = Options {
        clients: vec![Client::public(DEFAULT_CLIENT_ID, RedirectRule::Exact(vec![REDIRECT.into()]))],
        ..Options::default()
    };
    let scene = Scene::new(options).await;
    let code = scene.code(ALL).await;
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", DEFAULT_CLIENT_ID),
        ("code", &code),
        ("redirect_uri", REDIRECT),
        ("code_verifier", VERIFIER),
    ];
    let (status, tokens) = read(scene.http.post(scene.url("/token")).form(&form).send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert!(scene.lives(text(&tokens, "access_token")).await);
}

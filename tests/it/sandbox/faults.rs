//! Faults, each by the row of the provider's misbehaviour that it plays.

use std::io;

use super::*;

impl Scene {
    /// Adds a rule as one would with curl; its id.
    async fn fault(&self, rule: Value) -> u64 {
        let answer = self.http.post(self.url("/_sandbox/faults")).json(&rule).send().await.unwrap();
        let (status, answer) = read(answer).await;
        assert_eq!(status, 200, "{rule}: {answer}");
        answer["id"].as_u64().unwrap()
    }

    /// The answer to a refresh as it comes.
    async fn refresh_raw(&self, token: &str) -> reqwest::Result<Response> {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        let request = self.http.post(self.url("/token")).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET));
        request.form(&form).send().await
    }

    /// What comes over the wire for a refresh until the connection ends.
    async fn refresh_wire(&self, token: &str) -> (Vec<u8>, io::Result<()>) {
        let form = format!(
            "grant_type=refresh_token&client_id={DEFAULT_CLIENT_ID}&client_secret={DEFAULT_CLIENT_SECRET}&refresh_token={token}"
        );
        let head = "POST /token HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded";
        let mut wire = TcpStream::connect(self.sandbox.addr()).await.unwrap();
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{form}", form.len());
        wire.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let end = wire.read_to_end(&mut answer).await.map(drop);
        (answer, end)
    }

    /// Whether the newest refresh token of this person's grant is still the one of this answer.
    fn is_unspent(&self, person: &str, tokens: &Value) -> bool {
        let grant = self.sandbox.grants_of(person).pop().unwrap();
        grant.refresh_token == Some(Sandbox::fingerprint(text(tokens, "refresh_token")))
    }
}

#[tokio::test]
async fn p1_a_withheld_or_repeated_refresh_token_leaves_the_presented_one_good() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let same = first["refresh_token"].clone();
    for (effect, seen) in [
        (json!({ "omit": "refresh_token" }), None),
        (json!({ "set": { "refresh_token": "" } }), Some(json!(""))),
        (json!({ "set": { "refresh_token": null } }), Some(Value::Null)),
        (json!({ "repeat": "refresh_token" }), Some(same)),
    ] {
        scene.put("/_sandbox/faults", &json!([{ "on": "refresh", "do": effect }])).await;
        let (status, answer) = scene.refresh(text(&first, "refresh_token")).await;
        assert_eq!((status, answer.get("refresh_token").cloned()), (StatusCode::OK, seen));
        assert!(scene.lives(text(&answer, "access_token")).await);
        assert!(!scene.sandbox.requests().iter().any(|request| request.rotated));
    }
    scene.sandbox.set_faults([Rule::exchange(Effect::omit("refresh_token"))]);
    assert!(scene.linked(ALL).await.get("refresh_token").is_none());
    assert!(scene.refresh(text(&first, "refresh_token")).await.1["refresh_token"].is_string());
}

#[tokio::test]
async fn p2_expires_in_can_be_anything_while_the_token_lives_as_ever() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    for raw in ["null", "\"3600\"", "3599.5", "0", "-1", "1000000000000000000", "1e400", "\"soon\"", "}{"] {
        scene.sandbox.set_faults([Rule::refresh(Effect::raw("expires_in", raw))]);
        let body = scene.refresh_raw(text(&first, "refresh_token")).await.unwrap().text().await.unwrap();
        assert!(body.contains(&format!("\"expires_in\":{raw}")), "{raw}");
    }
    scene.sandbox.set_faults([Rule::refresh(Effect::omit("expires_in"))]);
    let (_, answer) = scene.refresh(text(&first, "refresh_token")).await;
    assert!(answer.get("expires_in").is_none() && scene.lives(text(&answer, "access_token")).await);
    scene.sandbox.clear_faults();
    assert_eq!(scene.refresh(text(&first, "refresh_token")).await.1["expires_in"], 3600);
}

#[tokio::test]
async fn p4_the_same_access_token_comes_back_with_the_same_end() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    scene.sandbox.set_faults([Rule::refresh(Effect::Repeat(Repeated::AccessToken))]);
    let mut refresh_token = text(&first, "refresh_token").to_owned();
    for (pass, left) in [(600, 3_000), (2_999, 1), (60, 0)] {
        scene.hand.advance(Duration::from_secs(pass));
        let (_, answer) = scene.refresh(&refresh_token).await;
        assert_eq!((&answer["access_token"], &answer["expires_in"]), (&first["access_token"], &json!(left)));
        text(&answer, "refresh_token").clone_into(&mut refresh_token);
    }
    assert_eq!(scene.sandbox.grants()[0].rotations, 3, "the refresh token rotates as ever");
}

#[tokio::test]
async fn p5_p6_an_error_is_told_as_often_as_asked_and_spends_nothing() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let rule = json!({ "on": "refresh", "times": 2, "do": { "answer": { "status": 400, "error": "invalid_grant" } } });
    let id = scene.fault(rule.clone()).await;
    for hits in 1..=2 {
        assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
        assert_eq!(scene.sandbox.faults()[0].hits, hits);
    }
    let request = scene.last(Endpoint::Token);
    assert_eq!((request.status, request.error.as_deref()), (400, Some("invalid_grant")));
    assert_eq!(request.presented.refresh_token, Some(Sandbox::fingerprint(text(&first, "refresh_token"))));
    assert_eq!((request.rules, request.rotated, request.reuse), (vec![id], false, None));
    assert_eq!(scene.refresh(text(&first, "refresh_token")).await.0, 200);
    let mut shown = rule;
    shown.as_object_mut().unwrap().extend([
        ("id".into(), json!(id)),
        ("hits".into(), json!(2)),
        ("when".into(), json!("before")),
    ]);
    assert_eq!(scene.get("/_sandbox/faults").await.1, json!({ "faults": [shown], "held": 0 }));

    scene.sandbox.set_faults([Rule::userinfo(Effect::error(503, "temporarily_unavailable"))]);
    for _ in 0..2 {
        assert_eq!(scene.userinfo(text(&first, "access_token")).await.status(), 503);
    }
    for nonsense in [
        json!({ "on": "refresh", "do": { "typo": 1 } }),
        json!({ "on": "refresh", "do": "hold", "typo": 1 }),
        json!({ "on": "refresh", "do": { "answer": { "status": 99 } } }),
        json!({ "on": "refresh", "share_of_grants": 2, "do": "close" }),
    ] {
        assert_eq!(scene.put("/_sandbox/faults", &json!([nonsense])).await.0, 400);
        let posted = scene.http.post(scene.url("/_sandbox/faults")).json(&nonsense).send().await.unwrap();
        assert_eq!(posted.status(), 400);
    }
    assert!(!scene.lives(text(&first, "access_token")).await, "a refused change changes nothing");
    let id = scene.sandbox.faults()[0].id;
    let delete =
        async || scene.http.delete(scene.url(&format!("/_sandbox/faults/{id}"))).send().await.unwrap().status();
    assert_eq!((delete().await, delete().await), (StatusCode::OK, StatusCode::BAD_REQUEST));
    assert!(scene.lives(text(&first, "access_token")).await);
}

#[tokio::test]
async fn p7_a_share_of_the_grants_is_hit_each_time_and_the_others_never() {
    let people: Vec<String> = (0..60).map(|number| format!("p{number}")).collect();
    let named = people.iter().map(|name| sandbox::Person::named(name)).collect();
    let scene = Scene::new(Options { people: named, rotation: Rotation::Never, ..Options::default() }).await;
    let mut tokens = Vec::new();
    for name in &people {
        tokens.push(scene.linked_as(name, ALL).await);
    }
    scene.fault(json!({ "on": "refresh", "share_of_grants": 0.33, "do": { "answer": { "status": 400, "error": "invalid_grant" } } })).await;
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let all = tokens.iter().map(|tokens| scene.refresh(text(tokens, "refresh_token")));
        let statuses: Vec<_> =
            futures_util::future::join_all(all).await.into_iter().map(|(status, _)| status).collect();
        rounds.push(statuses);
    }
    let hit = rounds[0].iter().filter(|status| **status == 400).count();
    assert!((10..30).contains(&hit), "{hit} of 60");
    assert!(rounds[0] == rounds[1] && rounds[1] == rounds[2]);

    scene.sandbox.set_faults([Rule::refresh(Effect::error(503, "x")).share_of_requests(0.5)]);
    let mut statuses = Vec::new();
    for _ in 0..40 {
        statuses.push(scene.refresh(text(&tokens[0], "refresh_token")).await.0);
    }
    let hit = statuses.iter().filter(|status| **status == 503).count();
    assert!((10..30).contains(&hit), "{hit} of 40, some of them hit and some not");
}

#[tokio::test]
async fn p8_client_secrets_are_rolled_over_and_a_client_can_be_refused() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    let token = text(&first, "refresh_token");
    let with = async |secret: &str| {
        let request = scene.http.post(scene.url("/token")).basic_auth(DEFAULT_CLIENT_ID, Some(secret));
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        read(request.form(&form).send().await.unwrap()).await
    };
    scene.put("/_sandbox/settings", &json!({ "rotation": "never" })).await;
    for (accepted, first, second) in [
        (json!([DEFAULT_CLIENT_SECRET]), 200, 401),
        (json!([DEFAULT_CLIENT_SECRET, "second"]), 200, 200),
        (json!(["second"]), 401, 200),
        (json!([]), 401, 401),
    ] {
        let put = json!({ "client_secrets": { DEFAULT_CLIENT_ID: accepted } });
        assert_eq!(scene.put("/_sandbox/settings", &put).await.0, 200);
        assert_eq!((with(DEFAULT_CLIENT_SECRET).await.0, with("second").await.0), (code(first), code(second)), "{put}");
    }
    let stranger = json!({ "client_secrets": { "nobody": ["x"] } });
    assert_eq!(refused(scene.put("/_sandbox/settings", &stranger).await), "invalid_request");
    scene.put("/_sandbox/settings", &json!({ "client_secrets": { DEFAULT_CLIENT_ID: [DEFAULT_CLIENT_SECRET] } })).await;
    for (status, error) in [(401, "invalid_client"), (400, "unauthorized_client")] {
        scene.sandbox.set_faults([Rule::refresh(Effect::error(status, error))]);
        let (told, answer) = scene.refresh(token).await;
        assert_eq!((told, text(&answer, "error")), (code(status), error));
    }
}

#[tokio::test]
async fn p9_too_many_requests_with_any_retry_after() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    for after in ["120", "Fri, 31 Dec 2032 23:59:59 GMT", "-1", "99999999999999999999", "soon"] {
        let reply = Reply::new(429).error("slow_down").description("not so fast").header("Retry-After", after);
        scene.sandbox.set_faults([Rule::refresh(Effect::Answer(reply))]);
        let answer = scene.refresh_raw(text(&first, "refresh_token")).await.unwrap();
        assert_eq!((answer.status(), answer.headers()["retry-after"].to_str().unwrap()), (code(429), after));
        assert_eq!(read(answer).await.1, json!({ "error": "slow_down", "error_description": "not so fast" }));
    }
    assert!(scene.is_unspent("demo", &first));
}

#[tokio::test]
async fn p10_p11_p19_any_answer_comes_before_or_after_the_rotation() {
    let html = Reply::new(200).header("content-type", "text/html").body("<p>down</p>");
    for (reply, status, kind, body) in [
        (Reply::new(500), 500, None, ""),
        (html, 200, Some("text/html"), "<p>down</p>"),
        (Reply::new(502).header("content-type", "text/html").body("<p>"), 502, Some("text/html"), "<p>"),
        (Reply::new(503), 503, None, ""),
        (Reply::new(200), 200, None, ""),
        (Reply::new(200).body("{\"access_tok"), 200, Some("application/json"), "{\"access_tok"),
        (Reply::new(200).error("bad_token"), 200, Some("application/json"), "{\"error\":\"bad_token\"}"),
        (Reply::new(200).body("{\"ok\":false}"), 200, Some("application/json"), "{\"ok\":false}"),
        (Reply::new(401).error("invalid_grant"), 401, Some("application/json"), "{\"error\":\"invalid_grant\"}"),
        (Reply::new(403).error("invalid_grant"), 403, Some("application/json"), "{\"error\":\"invalid_grant\"}"),
        (Reply::new(307).header("location", "http://169.254.169.254/"), 307, None, ""),
    ] {
        for when in [When::Before, When::After] {
            let scene = Scene::plain().await;
            let first = scene.linked(ALL).await;
            scene.sandbox.set_faults([Rule::refresh(Effect::Answer(reply.clone())).when(when)]);
            let answer = scene.refresh_raw(text(&first, "refresh_token")).await.unwrap();
            let told = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            assert_eq!((answer.status(), told.as_deref()), (code(status), kind), "{reply:?}");
            assert_eq!(answer.text().await.unwrap(), body, "{reply:?}");
            let request = scene.last(Endpoint::Token);
            assert_eq!((request.status, request.rotated), (status, when == When::After), "{reply:?}");
            assert_eq!(request.issued.refresh_token.is_some(), when == When::After, "what is lost is recorded");
            assert_eq!(scene.is_unspent("demo", &first), when == When::Before, "{reply:?}");
        }
    }
}

#[tokio::test]
async fn p10_a_good_answer_can_be_cut_short_mistyped_or_marked() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    let body = async |rules: Vec<Rule>| {
        scene.sandbox.set_faults(rules);
        let answer = scene.refresh_raw(text(&first, "refresh_token")).await.unwrap();
        (answer.headers()["content-type"].to_str().unwrap().to_owned(), answer.bytes().await.unwrap())
    };
    let (_, short) = body(vec![Rule::refresh(Effect::Truncate(20))]).await;
    assert_eq!(&short[..], b"{\"access_token\":\"sbx");
    let (_, marked) = body(vec![Rule::refresh(Effect::Bom)]).await;
    assert!(marked.starts_with(b"\xef\xbb\xbf{\"access_token\":\"sbx_at_"));
    let plain = Effect::Headers([("Content-Type".to_owned(), "text/plain".to_owned())].into());
    let (kind, whole) = body(vec![Rule::refresh(plain)]).await;
    assert!(kind == "text/plain" && serde_json::from_slice::<Value>(&whole).unwrap()["expires_in"] == 3600);
    let error = Effect::error(400, "x");
    let (_, both) =
        body(vec![Rule::refresh(Effect::Bom), Rule::refresh(error), Rule::refresh(Effect::omit("error"))]).await;
    assert_eq!(&both[..], b"\xef\xbb\xbf{\"error\":\"x\"}", "on the wire any answer is hit, its fields are its own");
}

#[tokio::test]
async fn p12_answers_are_huge_deep_or_slow() {
    let scene = Scene::new(Options { rotation: Rotation::Never, ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    let ask = async |effect| {
        scene.sandbox.set_faults([Rule::refresh(effect)]);
        scene.refresh_raw(text(&first, "refresh_token")).await.unwrap()
    };
    for size in [2, 100, 65_536, 65_537, 200_000] {
        let bytes = ask(Effect::Huge(size)).await.bytes().await.unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), json!({}));
    }
    let mut endless = ask(Effect::Huge(1 << 40)).await;
    assert!(endless.chunk().await.unwrap().is_some(), "a terabyte begins at once");
    drop(endless);
    let deep = ask(Effect::Nested(100_000)).await.text().await.unwrap();
    assert_eq!((deep.len(), deep.find(']')), (200_000, Some(100_000)));
    let mut slow = ask(Effect::Drip(Duration::from_millis(1))).await;
    let mut pieces = Vec::new();
    while let Some(piece) = slow.chunk().await.unwrap() {
        pieces.push(piece);
    }
    assert!(serde_json::from_slice::<Value>(&pieces.concat()).unwrap()["access_token"].is_string());
    assert!(pieces.len() > 10, "{} pieces", pieces.len());
}

#[tokio::test]
async fn p13_p14_a_connection_ends_without_an_answer_before_or_after_the_rotation() {
    for when in [When::Before, When::After] {
        for (effect, is_reset) in [(Effect::Close, false), (Effect::Reset, true)] {
            let scene = Scene::plain().await;
            let first = scene.linked(ALL).await;
            scene.sandbox.set_faults([Rule::refresh(effect.clone()).when(when).times(1)]);
            let (seen, end) = scene.refresh_wire(text(&first, "refresh_token")).await;
            assert!(seen.is_empty(), "{effect:?}");
            let reset = end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
            assert_eq!(reset, is_reset, "{effect:?}");
            let request = scene.last(Endpoint::Token);
            assert_eq!((request.status, request.rotated), (0, when == When::After));
            let again = scene.refresh(text(&first, "refresh_token")).await.0;
            assert_eq!(again, if when == When::Before { 200 } else { 400 }, "the lost answer had the only good token");
        }
    }
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    scene.sandbox.set_faults([Rule::refresh(Effect::BreakOff(10))]);
    let (seen, _) = scene.refresh_wire(text(&first, "refresh_token")).await;
    let seen = String::from_utf8(seen).unwrap();
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: "), "{head}");
    assert_eq!(body, "{\"access_t");
}

#[tokio::test]
async fn p14_a_lost_answer_is_asked_for_again_within_a_grace_and_may_end_the_family_without() {
    let lose = || [Rule::refresh(Effect::Close).after().times(1)];
    let scene = Scene::new(Options { rotation: Rotation::Grace(Duration::from_secs(30)), ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    scene.sandbox.set_faults(lose());
    assert!(scene.refresh_raw(text(&first, "refresh_token")).await.is_err());
    let (status, second) = scene.refresh(text(&first, "refresh_token")).await;
    assert_eq!((status, scene.last(Endpoint::Token).reuse), (code(200), Some(Reuse::InGrace)));
    assert_eq!(scene.refresh(text(&second, "refresh_token")).await.0, 200);

    let scene = Scene::new(Options { reuse_revokes_family: true, ..Options::default() }).await;
    let first = scene.linked(ALL).await;
    scene.sandbox.set_faults(lose());
    assert!(scene.refresh_raw(text(&first, "refresh_token")).await.is_err());
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "invalid_grant");
    assert_eq!(scene.sandbox.grants()[0].ended, Some(Ending::Reuse));
}

#[tokio::test]
async fn p15_every_third_refresh_rotates() {
    let scene = Scene::plain().await;
    scene.put("/_sandbox/settings", &json!({ "rotation": { "every": 3 } })).await;
    let mut token = text(&scene.linked(ALL).await, "refresh_token").to_owned();
    let mut rotated = Vec::new();
    for _ in 0..6 {
        let (status, answer) = scene.refresh(&token).await;
        assert_eq!(status, 200);
        rotated.push(answer.get("refresh_token").is_some());
        if let Some(next) = answer.get("refresh_token") {
            next.as_str().unwrap().clone_into(&mut token);
        }
    }
    assert_eq!(rotated, [false, false, true, false, false, true]);
}

#[tokio::test]
async fn p16_fewer_scopes_are_told() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    scene.sandbox.set_faults([Rule::refresh(Effect::set("scope", "openid"))]);
    assert_eq!(scene.refresh(text(&first, "refresh_token")).await.1["scope"], "openid");
}

#[tokio::test]
async fn p17_a_refresh_ends_the_access_token_of_before_and_a_good_one_is_rejected() {
    let scene = Scene::plain().await;
    scene.put("/_sandbox/settings", &json!({ "refresh_ends_access": true })).await;
    let (first, other) = (scene.linked_as("alice", ALL).await, scene.linked_as("bob", ALL).await);
    let second = scene.refresh(text(&first, "refresh_token")).await.1;
    assert!(!scene.lives(text(&first, "access_token")).await && scene.lives(text(&second, "access_token")).await);
    let reject = Effect::error(401, "invalid_token");
    scene.sandbox.set_faults([Rule::userinfo(reject).person("alice").client(DEFAULT_CLIENT_ID)]);
    assert!(!scene.lives(text(&second, "access_token")).await && scene.lives(text(&other, "access_token")).await);
    scene.sandbox.set_faults([Rule::userinfo(Effect::Close).client("another")]);
    assert!(scene.lives(text(&second, "access_token")).await);
}

#[tokio::test]
async fn p20_revocation_is_down_or_reaches_all_that_the_person_gave() {
    let mut options = Options::default();
    options.clients.push(Client::public("phone", RedirectRule::Loopback));
    let scene = Scene::new(options).await;
    let (first, second) = (scene.linked_as("alice", ALL).await, scene.linked_as("alice", ALL).await);
    let other = scene.linked_as("bob", ALL).await;
    scene.sandbox.set_faults([
        Rule::revoke(Effect::error(503, "x")).person("alice"),
        Rule::revoke(Effect::Close).after().person("bob"),
    ]);
    assert_eq!(scene.revoke(text(&first, "refresh_token")).await, 503);
    assert!(scene.lives(text(&first, "access_token")).await, "nothing was revoked");
    let lost = scene.http.post(scene.url("/revoke")).basic_auth(DEFAULT_CLIENT_ID, Some(DEFAULT_CLIENT_SECRET));
    assert!(lost.form(&[("token", text(&other, "refresh_token"))]).send().await.is_err());
    assert!(!scene.lives(text(&other, "access_token")).await, "only the answer was lost");
    scene.sandbox.clear_faults();
    scene.put("/_sandbox/settings", &json!({ "revocation_ends_all": true })).await;
    let kept = scene.linked_as("bob", ALL).await;
    assert_eq!(scene.revoke(text(&first, "access_token")).await, 200);
    assert!(!scene.lives(text(&second, "access_token")).await && scene.lives(text(&kept, "access_token")).await);
}

#[tokio::test]
async fn of_the_rules_that_match_all_are_met_and_the_first_answers() {
    let scene = Scene::plain().await;
    let first = scene.linked_as("alice", ALL).await;
    let ids = scene.sandbox.set_faults([
        Rule::refresh(Effect::error(400, "for_bob")).person("bob"),
        Rule::refresh(Effect::Delay(Duration::from_millis(1))),
        Rule::refresh(Effect::error(400, "for_alice")).person("alice").times(1),
        Rule::refresh(Effect::error(400, "for_all")),
    ]);
    let more = scene.sandbox.add_fault(Rule::refresh(Effect::Bom));
    assert_eq!(
        refused_in(&scene.refresh_raw(text(&first, "refresh_token")).await.unwrap().bytes().await.unwrap()),
        "for_alice"
    );
    assert_eq!(scene.last(Endpoint::Token).rules, [ids[1], ids[2], more]);
    assert!(scene.sandbox.clear_fault(more) && !scene.sandbox.clear_fault(more));
    assert_eq!(refused(scene.refresh(text(&first, "refresh_token")).await), "for_all");
    let hits: Vec<u64> = scene.sandbox.faults().iter().map(|fault| fault.hits).collect();
    assert_eq!(hits, [0, 2, 1, 1]);
}

#[tokio::test]
#[should_panic(expected = "a share is a number from 0 to 1")]
async fn a_rule_that_cannot_be_carried_out_is_a_mistake_of_the_test() {
    Scene::plain().await.sandbox.add_fault(Rule::refresh(Effect::Hold).share_of_requests(7.0));
}

#[tokio::test]
async fn a_held_request_waits_before_or_after_the_work() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    for (place, done) in [("before", 0), ("after", 1)] {
        scene.fault(json!({ "on": "exchange", "when": place, "do": "hold" })).await;
        let code = scene.code(ALL).await;
        let decided = scene.sandbox.requests().len();
        let act = async {
            assert_eq!(scene.get("/_sandbox/faults?held=1").await.1["held"], 1);
            assert_eq!(scene.sandbox.requests().len(), decided + done, "{place}");
            assert_eq!(scene.refresh(text(&first, "refresh_token")).await.0, if done == 0 { 200 } else { 400 });
            scene.http.post(scene.url("/_sandbox/faults/release")).send().await.unwrap();
        };
        let ((status, _), ()) = tokio::join!(scene.exchange(&code, VERIFIER), act);
        assert_eq!(status, 200);
    }
    assert_eq!(scene.get("/_sandbox/faults?held=0").await.1, json!({ "held": 0, "faults": [] }));
}

#[tokio::test]
async fn a_hold_for_one_request_lets_the_next_one_pass_and_still_holds() {
    let scene = Scene::plain().await;
    let (alice, bob) = (scene.linked_as("alice", ALL).await, scene.linked_as("bob", ALL).await);
    scene.sandbox.set_faults([Rule::refresh(Effect::Hold).times(1)]);
    let act = async {
        scene.sandbox.wait_held(1).await;
        assert_eq!(scene.refresh(text(&bob, "refresh_token")).await.0, 200);
        scene.sandbox.wait_held(1).await;
        scene.sandbox.clear_faults();
    };
    let ((status, _), ()) = tokio::join!(scene.refresh(text(&alice, "refresh_token")), act);
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_delay_is_real_time() {
    let scene = Scene::plain().await;
    let first = scene.linked(ALL).await;
    scene.sandbox.set_faults([Rule::refresh(Effect::Delay(Duration::from_millis(60)))]);
    let quick = Duration::from_millis(50);
    assert!(tokio::time::timeout(quick, scene.refresh(text(&first, "refresh_token"))).await.is_err());
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap()
}

/// The error of a body that a byte order mark stands in front of.
fn refused_in(body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body.strip_prefix(b"\xef\xbb\xbf").unwrap()).unwrap();
    text(&answer, "error").to_owned()
}

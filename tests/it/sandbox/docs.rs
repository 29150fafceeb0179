//! docs/sandbox.md says what is: each of its examples is run, and each switch has one.

use std::path::Path;

use super::*;

/// The `curl` calls of the document, as method, path and body.
fn calls(text: &str) -> Vec<(String, String, Option<String>)> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let shell: String = blocks.collect();
    let calls = shell.split("curl -sS ").skip(1).map(|call| {
        let (command, data) = call
            .split_once("-d '")
            .map_or((call, None), |(command, data)| (command, Some(data.split('\'').next().unwrap().to_owned())));
        let line = command.split("\n#").next().unwrap();
        let method = line.split_once("-X ").map_or("GET", |(_, rest)| rest.split(' ').next().unwrap());
        let path = line.split_once("$sandbox").unwrap().1.split(['"', ' ', '\n']).next().unwrap();
        (method.to_owned(), path.to_owned(), data)
    });
    calls.collect()
}

#[tokio::test]
async fn every_example_of_the_document_works_and_every_switch_is_in_it() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sandbox.md")).unwrap();
    let scene = Scene::plain().await;
    let calls = calls(&text);
    assert_eq!(calls.len(), text.matches("curl -sS").count());
    for (method, path, body) in &calls {
        if path.ends_with("?held=1") {
            // What the rule before it holds.
            let form = [("grant_type", "refresh_token"), ("refresh_token", "any")];
            tokio::spawn(scene.http.post(scene.url("/token")).form(&form).send());
        }
        let request =
            scene.http.request(method.parse().unwrap(), scene.url(path)).body(body.clone().unwrap_or_default());
        let (status, answer) = read(request.send().await.unwrap()).await;
        assert!(status.is_success(), "{method} {path} {body:?}: {status} {answer}");
    }

    let examples: String = calls.into_iter().filter_map(|(_, _, body)| body).collect();
    for setting in scene.get("/_sandbox/settings").await.1.as_object().unwrap().keys() {
        assert!(text.contains(&format!("| `{setting}` |")), "{setting} is not in the table");
        assert!(examples.contains(&format!("\"{setting}\"")), "{setting} has no example");
    }
    // The refusal of what there is not lists what there is.
    for nonsense in [
        json!({ "on": "refresh", "do": "nonsense" }),
        json!({ "on": "nonsense", "do": "hold" }),
        json!({ "nonsense": 1 }),
        json!({ "on": "refresh", "do": { "answer": { "nonsense": 1 } } }),
    ] {
        let refused = scene.http.post(scene.url("/_sandbox/faults")).json(&nonsense).send().await.unwrap();
        assert_eq!(refused.status(), 400);
        let why = read(refused).await.1["error_description"].as_str().unwrap().to_owned();
        let known: Vec<&str> = why.split('`').skip(3).step_by(2).collect();
        assert!(known.len() >= 4, "{why}");
        for switch in known {
            assert!(examples.contains(&format!("\"{switch}\"")), "{switch} has no example");
        }
    }
}

//! What a browser does, as far as the tests need it: it follows no redirect by itself.

use reqwest::header::LOCATION;
use reqwest::{Client, Response, Url};

#[expect(clippy::disallowed_methods, reason = "a browser, not the wallet's client")]
pub fn new() -> Client {
    Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
}

/// Where an answer sends the browser.
pub fn location(answer: &Response) -> Url {
    let location = answer.headers().get(LOCATION).unwrap_or_else(|| panic!("no redirect but {}", answer.status()));
    answer.url().join(location.to_str().unwrap()).unwrap()
}

/// A query parameter of a URL.
pub fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

//! Requests that no proper client sends (faults G4, G7, G9): each is refused with a fixed sentence, or harms nothing. And
//! creating calls that are repeated.

use std::time::Duration;

use bytes_of::Raw;
use token_wallet::sandbox::{Effect, Rule};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use token_wallet::proto::v1;

use crate::support::harness::{APP_URL, Engine, Harness, on_both_engines, reason};

const GET: &str = "/tokenwallet.v1.WalletService/GetAccessToken";

/// Messages as bytes, whatever they are.
mod bytes_of {
    use prost::bytes::{Buf as _, BufMut as _};
    use tonic::Status;
    use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

    #[derive(Clone, Copy)]
    pub struct Raw;

    impl Codec for Raw {
        type Encode = Vec<u8>;
        type Decode = Vec<u8>;
        type Encoder = Self;
        type Decoder = Self;

        fn encoder(&mut self) -> Self {
            Self
        }

        fn decoder(&mut self) -> Self {
            Self
        }
    }

    impl Encoder for Raw {
        type Item = Vec<u8>;
        type Error = Status;

        fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
            to.put_slice(&message);
            Ok(())
        }
    }

    impl Decoder for Raw {
        type Item = Vec<u8>;
        type Error = Status;

        fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
            Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
        }
    }
}

/// Sends `message` to `path`, with `key` if there is one.
async fn send(harness: &Harness, path: &str, key: Option<&str>, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(harness.channel());
    client.ready().await.unwrap();
    let mut request = Request::new(message);
    if let Some(key) = key {
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    client.unary(request, path.parse::<PathAndQuery>().unwrap(), Raw).await.map(tonic::Response::into_inner)
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

#[tokio::test]
async fn g4_a_message_over_the_limit_is_refused_and_one_below_it_is_read() {
    let harness = Harness::start(Engine::Sqlite).await;
    let key = Some(harness.key.as_str());
    for size in [64 * 1024, 1 << 20] {
        let refused = send(&harness, GET, key, field(1, &vec![b'u'; size])).await.unwrap_err();
        assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused:?}");
        assert!(refused.message().contains("message length too large"), "{refused:?}");
    }
    let read = send(&harness, GET, key, field(1, &vec![b'u'; 63 * 1024])).await.unwrap_err();
    assert_eq!((read.code(), reason(&read).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{read:?}");
    harness.link("u", "demo").await;
    assert!(harness.get("u").await.is_ok());
}

#[tokio::test]
async fn g4_bytes_that_are_no_message_are_refused_without_repeating_them() {
    let harness = Harness::start(Engine::Sqlite).await;
    let key = Some(harness.key.as_str());
    let nested = (0..200).fold(Vec::new(), |inner, _| field(5, &inner));
    for message in [vec![0xff; 64], b"canary, and no protobuf at all".to_vec(), field(1, &[0xc3, 0x28]), nested] {
        let refused = send(&harness, GET, key, message).await.unwrap_err();
        assert!(matches!(refused.code(), Code::Internal | Code::InvalidArgument), "{refused:?}");
        assert!(!refused.message().contains("canary"), "{refused:?}");
    }
}

#[tokio::test]
async fn g4_unknown_fields_are_ignored() {
    let harness = Harness::start(Engine::Sqlite).await;
    harness.link("u", "demo").await;
    let message = [field(1, b"u"), field(2, b"sandbox"), field(15, b"from a newer client")].concat();
    assert!(!send(&harness, GET, Some(&harness.key), message).await.unwrap().is_empty());
}

#[tokio::test]
async fn g4_what_does_not_exist_is_told_only_to_callers_with_a_key() {
    let harness = Harness::start(Engine::Sqlite).await;
    for path in ["/tokenwallet.v1.WalletService/Nothing", "/tokenwallet.v1.Nothing/At", "/nothing/at"] {
        let stranger = send(&harness, path, None, Vec::new()).await.unwrap_err();
        assert_eq!((stranger.code(), reason(&stranger).as_str()), (Code::Unauthenticated, "CREDENTIALS_MISSING"));
        let caller = send(&harness, path, Some(&harness.key), Vec::new()).await.unwrap_err();
        assert_eq!(caller.code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn g7_a_deadline_is_kept_while_the_provider_hangs() {
    let harness = Harness::start(Engine::Sqlite).await;
    harness.link("u", "demo").await;
    harness.pass(Duration::from_hours(2));
    harness.sandbox.set_faults([Rule::refresh(Effect::Hold).after()]);
    let mut request = Request::new(token_wallet::proto::v1::GetAccessTokenRequest {
        user_id: "u".into(),
        provider: "sandbox".into(),
        ..Default::default()
    });
    // As text: `set_timeout` would make our own side give up as well.
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let mut client = harness.wallet();
    let (answer, ()) = tokio::join!(client.get_access_token(request), harness.sandbox.wait_held(1));
    let late = answer.unwrap_err();
    assert_eq!((late.code(), reason(&late).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"), "{late:?}");
    // The refresh went on without its caller.
    harness.sandbox.release();
    assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    assert_eq!(harness.refreshes().len(), 1);
}

/// A client to make, once.
fn client(request_id: &str) -> v1::CreateApiClientRequest {
    let (display_name, request_id) = ("made once".into(), request_id.into());
    v1::CreateApiClientRequest { display_name, request_id, ..Default::default() }
}

async fn make(harness: &Harness, request: v1::CreateApiClientRequest) -> Result<v1::CreateApiClientResponse, Status> {
    harness.clients().create_api_client(request).await.map(tonic::Response::into_inner)
}

async fn clients(harness: &Harness) -> i64 {
    harness.database().await.number("SELECT COUNT(*) FROM api_clients WHERE display_name = 'made once'").await
}

on_both_engines! {
    async fn g9_pages_are_bounded_and_their_tokens_are_ours(engine) {
        let harness = Harness::start(engine).await;
        for (user, person) in [("u", "demo"), ("u", "alice")] {
            harness.link(user, person).await;
        }
        let list = async |page_size, page_token: &str| {
            let request = v1::ListExternalAccountsRequest { page_size, page_token: page_token.into(), ..Default::default() };
            harness.accounts().list_external_accounts(request).await.map(tonic::Response::into_inner)
        };
        assert_eq!(list(1_000_000_000, "").await.unwrap().external_accounts.len(), 2);
        let token = list(1, "").await.unwrap().next_page_token;
        let mut forged = token.clone().into_bytes();
        forged[30] = if forged[30] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        for (size, token) in [(-1, ""), (i32::MIN, ""), (1, "zz9"), (1, forged.as_str()), (1, &token[..20]), (1, "' OR 1=1 --")] {
            let refused = list(size, token).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{size} {token}");
            assert!(token.is_empty() || !refused.message().contains(token), "never the value");
        }
        // Of another list, and of another caller.
        let request = v1::ListApiClientsRequest { page_token: token.clone(), ..Default::default() };
        assert_eq!(reason(&harness.clients().list_api_clients(request).await.unwrap_err()), "INVALID_FIELD");
        let other = make(&harness, client("")).await.unwrap().api_key.unwrap().secret;
        let request = v1::ListExternalAccountsRequest { page_size: 1, page_token: token, ..Default::default() };
        assert_eq!(reason(&harness.accounts_as(&other).list_external_accounts(request).await.unwrap_err()), "INVALID_FIELD");
    }

    async fn g9_a_request_id_makes_a_repeated_call_answer_the_same(engine) {
        let mut harness = Harness::start(engine).await;
        let first = make(&harness, client("id-1")).await.unwrap();
        assert_eq!(make(&harness, client("id-1")).await.unwrap(), first, "the key too");
        let key = first.api_key.clone().unwrap().secret;
        let hex = if engine == Engine::Sqlite { "lower(hex(answer))" } else { "encode(answer, 'hex')" };
        let stored = harness.database().await.texts(&format!("SELECT {hex} FROM request_ids")).await;
        let clear = data_encoding::HEXLOWER.encode(&key.as_bytes()[key.len() - 20..]);
        assert!(stored.len() == 1 && !stored[0].contains(&clear), "the answer is sealed");
        harness.restart().await;
        assert_eq!(make(&harness, client("id-1")).await.unwrap(), first);
        // Another request is another request.
        let other = v1::CreateApiClientRequest { display_name: "another".into(), ..client("id-1") };
        let reused = make(&harness, other).await.unwrap_err();
        assert_eq!((reused.code(), reason(&reused).as_str()), (Code::FailedPrecondition, "REQUEST_ID_REUSED"));
        assert!(!reused.message().contains("id-1"));
        for id in ["x".repeat(129), "with space".to_owned(), "\u{fc}".to_owned()] {
            assert_eq!(reason(&make(&harness, client(&id)).await.unwrap_err()), "INVALID_FIELD");
        }
        assert_eq!(clients(&harness).await, 1);
        let url = || v1::CreateRedirectUrlRequest { url: "https://other.example/".into(), request_id: "id-1".into(), ..Default::default() };
        let allowed = harness.redirect_urls().create_redirect_url(url()).await.unwrap().into_inner();
        harness.pass(Duration::from_hours(23));
        assert_eq!(harness.redirect_urls().create_redirect_url(url()).await.unwrap().into_inner(), allowed);
        // A day later it is a new call, and the old row is gone.
        harness.pass(Duration::from_hours(2));
        assert_ne!(make(&harness, client("id-1")).await.unwrap(), first);
        assert_eq!(clients(&harness).await, 2);
        harness.pass(Duration::from_hours(25));
        harness.work().await;
        assert_eq!(harness.database().await.number("SELECT COUNT(*) FROM request_ids").await, 0);
    }

    async fn a_request_id_belongs_to_one_client_and_one_method(engine) {
        let harness = Harness::start(engine).await;
        let key = make(&harness, client("same")).await.unwrap().api_key.unwrap().secret;
        let link = |key: &str| {
            let mut accounts = harness.accounts_as(key);
            let request = v1::StartLinkRequest {
                user_id: "u".into(),
                provider: "sandbox".into(),
                redirect_url: APP_URL.into(),
                request_id: "same".into(),
                ..Default::default()
            };
            async move { accounts.start_link(request).await.unwrap().into_inner().authorization_url }
        };
        let (mine, theirs) = (link(&harness.key).await, link(&key).await);
        assert_ne!(mine, theirs);
        assert_eq!((link(&harness.key).await, link(&key).await), (mine, theirs));
        let secret = |client_secret: &str| v1::CreateProviderSecretRequest {
            provider: "sandbox".into(),
            client_secret: client_secret.into(),
            request_id: "same".into(),
        };
        let (one, two) = (secret("second-secret"), secret("third-secret"));
        let added = harness.providers().create_provider_secret(one.clone()).await.unwrap().into_inner();
        assert_eq!(harness.providers().create_provider_secret(one).await.unwrap().into_inner(), added);
        assert_eq!(reason(&harness.providers().create_provider_secret(two).await.unwrap_err()), "REQUEST_ID_REUSED");
    }

    async fn calls_with_one_request_id_at_once_make_one_thing(engine) {
        let harness = Harness::start(engine).await;
        for round in 0..5 {
            let id = format!("round-{round}");
            let calls = (0..8).map(|_| make(&harness, client(&id)));
            let answers = futures_util::future::join_all(calls).await;
            let first = answers.iter().flatten().next().unwrap();
            for answer in &answers {
                match answer {
                    Ok(answer) => assert_eq!(answer, first),
                    Err(wait) => {
                        assert_eq!((wait.code(), reason(wait).as_str()), (Code::Unavailable, "REQUEST_IN_PROGRESS"));
                    }
                }
            }
            assert_eq!(&make(&harness, client(&id)).await.unwrap(), first);
            assert_eq!(clients(&harness).await, round + 1);
        }
    }

    async fn a_call_that_failed_can_be_made_again_with_its_request_id(engine) {
        let harness = Harness::start(engine).await;
        let provider = || v1::CreateProviderRequest {
            slug: "sandbox".into(),
            client_id: "x".into(),
            request_id: "again".into(),
            ..Default::default()
        };
        let mut providers = harness.providers();
        assert_eq!(reason(&providers.create_provider(provider()).await.unwrap_err()), "PROVIDER_EXISTS");
        providers.delete_provider(v1::DeleteProviderRequest { provider: "sandbox".into() }).await.unwrap();
        providers.create_provider(provider()).await.unwrap();
    }

    async fn a_call_whose_process_died_is_made_after_a_while_by_who_repeats_it(engine) {
        let harness = Harness::start(engine).await;
        let database = harness.database().await;
        // As if it had died between the reservation and what it makes: that fails, and nothing is forgotten.
        let (break_it, mend_it) = if engine == Engine::Sqlite {
            (
                "CREATE TRIGGER unnoted BEFORE UPDATE ON request_ids BEGIN SELECT RAISE(ABORT, 'unnoted'); END;
                 CREATE TRIGGER kept BEFORE DELETE ON request_ids BEGIN SELECT RAISE(IGNORE); END",
                "DROP TRIGGER unnoted; DROP TRIGGER kept",
            )
        } else {
            (
                "ALTER TABLE request_ids ADD CONSTRAINT unnoted CHECK (lease_until IS NOT NULL);
                 CREATE RULE kept AS ON DELETE TO request_ids DO INSTEAD NOTHING",
                "ALTER TABLE request_ids DROP CONSTRAINT unnoted; DROP RULE kept ON request_ids",
            )
        };
        database.script(break_it).await;
        assert_eq!(reason(&make(&harness, client("id")).await.unwrap_err()), "INTERNAL");
        assert_eq!(clients(&harness).await, 0, "what cannot be noted is not made");
        assert_eq!(reason(&make(&harness, client("id")).await.unwrap_err()), "REQUEST_IN_PROGRESS");
        let other = v1::CreateApiClientRequest { display_name: "another".into(), ..client("id") };
        assert_eq!(reason(&make(&harness, other).await.unwrap_err()), "REQUEST_ID_REUSED");
        database.script(mend_it).await;
        harness.pass(Duration::from_secs(31));
        let made = make(&harness, client("id")).await.unwrap();
        assert_eq!(make(&harness, client("id")).await.unwrap(), made);
        assert_eq!(clients(&harness).await, 1);
    }
}

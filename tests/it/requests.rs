//! Requests that no proper client sends (faults G4, G7): each is refused with a fixed sentence, or harms nothing.

use std::time::Duration;

use bytes_of::Raw;
use token_wallet::sandbox::{Effect, Rule};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::support::harness::{Engine, Harness, reason};

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

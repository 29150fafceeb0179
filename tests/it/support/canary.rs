//! Finds secrets in whatever a run leaves behind, in every form that a program may have written them in.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use data_encoding::{BASE64, BASE64URL, Encoding, HEXLOWER, HEXUPPER};

/// So many bytes of a secret's beginning or end give it away; both ends are looked for, so that a cut secret is found.
const PIECE: usize = 12;

/// What a secret is called, and the forms of its pieces.
pub struct Canary {
    pub name: String,
    needles: BTreeSet<Vec<u8>>,
}

/// Looks for many canaries at once.
pub struct Searcher {
    canaries: Vec<Canary>,
    /// Needles by their first four bytes: (canary, needle).
    by_head: HashMap<[u8; 4], Vec<(usize, Vec<u8>)>>,
}

impl Canary {
    pub fn new(name: impl Into<String>, secret: impl AsRef<[u8]>) -> Self {
        let (name, secret) = (name.into(), secret.as_ref());
        assert!(secret.len() >= PIECE, "{name} is too short to be told from chance");
        let needles = [&secret[..PIECE], &secret[secret.len() - PIECE..]].into_iter().flat_map(forms).collect();
        Self { name, needles }
    }
}

impl Searcher {
    pub fn new(canaries: Vec<Canary>) -> Self {
        let mut by_head = HashMap::<_, Vec<_>>::new();
        for (index, canary) in canaries.iter().enumerate() {
            for needle in &canary.needles {
                by_head.entry(needle[..4].try_into().unwrap()).or_default().push((index, needle.clone()));
            }
        }
        Self { canaries, by_head }
    }

    /// The names of the canaries in `bytes`, each with what stands around its first find.
    pub fn find(&self, bytes: &[u8]) -> Vec<(&str, String)> {
        let mut found = Vec::<(&str, String)>::new();
        for (at, head) in bytes.windows(4).enumerate() {
            let Some(needles) = self.by_head.get(head) else { continue };
            for (index, needle) in needles {
                let name = self.canaries[*index].name.as_str();
                if bytes[at..].starts_with(needle) && !found.iter().any(|(known, _)| *known == name) {
                    let around = &bytes[at.saturating_sub(200)..(at + needle.len() + 60).min(bytes.len())];
                    found.push((name, String::from_utf8_lossy(around).into_owned()));
                }
            }
        }
        found
    }
}

/// A piece as it is, and as programs write bytes and texts.
fn forms(piece: &[u8]) -> Vec<Vec<u8>> {
    let mut forms: Vec<Vec<u8>> = vec![piece.to_vec()];
    let mut add = |text: String| forms.push(text.into_bytes());
    add(HEXLOWER.encode(piece));
    add(HEXUPPER.encode(piece));
    for encoding in [&BASE64, &BASE64URL] {
        (0..3).for_each(|offset| add(base64_at(encoding, offset, piece)));
    }
    add(joined(piece, |byte| format!("%{byte:02X}")));
    add(joined(piece, |byte| format!("%{byte:02x}")));
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    add(joined(piece, |byte| if unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }));
    add(url::form_urlencoded::byte_serialize(piece).collect());
    // As Debug writes slices of bytes: [99, 97] and [63, 61].
    add(list(&format!("{piece:?}")));
    add(list(&format!("{piece:02x?}")));
    add(piece.escape_ascii().to_string());
    add(joined(piece, |byte| format!("&#{byte};")));
    if let Ok(text) = std::str::from_utf8(piece) {
        add(format!("{text:?}").trim_matches('"').to_owned());
        let json = inner(&serde_json::to_string(text).unwrap());
        add(inner(&serde_json::to_string(&json).unwrap()));
        add(json.replace('/', "\\/"));
        add(json);
        add(joined(piece, |byte| format!("\\u{byte:04x}")));
        add(in_a_url(text));
        add(joined(piece, |byte| format!("\\u{byte:04X}")));
        let special = |byte: u8| b"<>&\"'".contains(&byte);
        add(joined(piece, |byte| if special(byte) { format!("&#{byte};") } else { char::from(byte).to_string() }));
        add(text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;"));
    }
    forms
}

/// The characters that `piece` alone decides when it stands `offset` bytes into what is encoded.
fn base64_at(encoding: &Encoding, offset: usize, piece: &[u8]) -> String {
    let mut bytes = vec![0; offset];
    bytes.extend_from_slice(piece);
    bytes.truncate(bytes.len() / 3 * 3);
    encoding.encode(&bytes)[(offset * 8).div_ceil(6)..].to_owned()
}

fn joined(bytes: &[u8], form: impl Fn(u8) -> String) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{}", form(*byte)).unwrap();
        text
    })
}

/// As the password of a URL, where fewer characters are written in percent.
fn in_a_url(text: &str) -> String {
    let mut url = url::Url::parse("http://user@h/").unwrap();
    url.set_password(Some(text)).unwrap();
    url.password().unwrap().to_owned()
}

fn list(debug: &str) -> String {
    debug.trim_matches(['[', ']']).to_owned()
}

fn inner(quoted: &str) -> String {
    quoted[1..quoted.len() - 1].to_owned()
}

const SECRET: &str = r#"c4n"ary\/+<&> % of the self-test, with an end: 9"/x>&k2"#;

fn finds(sample: &[u8]) -> bool {
    let searcher = Searcher::new(vec![Canary::new("planted", SECRET), Canary::new("other", "never planted anywhere")]);
    searcher.find(sample).iter().map(|(name, _)| *name).eq(["planted"])
}

#[test]
fn a_planted_canary_is_found_in_every_encoding() {
    let json = serde_json::json!({ "body": SECRET }).to_string();
    let percent = joined(SECRET.as_bytes(), |byte| format!("%{byte:02X}"));
    let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("secret", SECRET).finish();
    let mut url = url::Url::parse("http://127.0.0.1/").unwrap();
    url.set_password(Some(SECRET)).unwrap();
    let mut samples = vec![
        ("plain", SECRET.to_owned()),
        ("cut at its end", SECRET[..20].to_owned()),
        ("cut at its beginning", SECRET[20..].to_owned()),
        ("JSON", json.clone()),
        ("JSON within JSON", serde_json::json!({ "log": json }).to_string()),
        ("JSON, all escaped", joined(SECRET.as_bytes(), |byte| format!("\\u{byte:04x}"))),
        ("percent, all", percent.clone()),
        ("percent, lower case", percent.to_lowercase()),
        ("a form", query),
        ("a URL's password", url.to_string()),
        ("Debug of a text", format!("{SECRET:?}")),
        ("Debug of bytes", format!("{:?}", SECRET.as_bytes())),
        ("hexadecimal Debug of bytes", format!("{:02x?}", SECRET.as_bytes())),
        ("HTML", joined(SECRET.as_bytes(), |byte| format!("&#{byte};"))),
        ("HTML by name", "<p>c4n&quot;ary\\/+&lt;&amp;&gt; %</p>".to_owned()),
        ("hex", HEXLOWER.encode(SECRET.as_bytes())),
        ("hex, upper case", HEXUPPER.encode(SECRET.as_bytes())),
    ];
    for before in ["", "a", "ab", "abc", "user:", "client-id:"] {
        for encoding in [BASE64, BASE64URL, data_encoding::BASE64_NOPAD, data_encoding::BASE64URL_NOPAD] {
            samples.push(("base64", encoding.encode(format!("{before}{SECRET}{before}").as_bytes())));
        }
    }
    for (form, sample) in samples {
        let around = [&[0xff; 70][..], b"noise ", sample.as_bytes(), b" noise", &[0x00; 9]].concat();
        assert!(finds(&around), "{form}: {sample}");
    }
    let raw = [7, 0, 255, 254, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 200];
    assert_eq!(Searcher::new(vec![Canary::new("raw", raw)]).find(&[&[0; 5][..], &raw].concat()).len(), 1);
}

#[test]
fn what_is_not_there_is_not_found() {
    for sample in ["", "c4n", "another text altogether, which is long enough to hold one", &SECRET[..PIECE - 1]] {
        assert!(!finds(sample.as_bytes()), "{sample}");
    }
}

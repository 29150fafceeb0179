//! The cells: which type is sealed into which column, and how. One type a column, declared here and nowhere else.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::envelope::Fields;
use crate::clock::Timestamp;
use crate::domain::account::Label;
use crate::domain::provider::{Lifetime, Profile, TokenAnswer};
use crate::domain::request::{Answer, Asked};
use crate::domain::scopes::Scopes;
use crate::domain::secret::{AccessToken, AuthorizationCode, ClientSecret, PkceVerifier, RefreshToken};
use crate::domain::spool::{Entry, ExchangeAnswer, RefreshAnswer};
use crate::domain::user::UserId;

/// A column, as `table.column`. A ciphertext opens in the column that it was sealed for and in no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(&'static str);

/// A value with a sealed column of its own.
pub trait Cell: Sized {
    /// The column.
    const PLACE: Place;

    /// The plaintext to seal; nothing if the value has no form as text, which seals nothing.
    fn to_plain(&self) -> Option<Zeroizing<Vec<u8>>>;

    /// The value again; nothing if the plaintext is not one of this type.
    fn from_plain(plain: Zeroizing<Vec<u8>>) -> Option<Self>;
}

/// A cell that is kept as JSON. Types that hold secrets have no `Serialize` and so cannot slip in here.
pub trait JsonCell: Serialize + DeserializeOwned {
    /// The column.
    const PLACE: Place;
}

/// Whose value it is: immutable ids, the empty string (or 0) where a row has none. A ciphertext opens for this owner
/// and no other.
#[derive(Clone, Copy)]
pub struct Owner<'a> {
    /// The row that holds the cell, by its id.
    pub row: &'a str,
    /// The external account.
    pub account: &'a str,
    /// The user, byte for byte as the caller named them.
    pub user: &'a str,
    /// The provider.
    pub provider: &'a str,
    /// The cell's generation: it counts the times that the cell was written.
    pub generation: i64,
}

impl Place {
    pub(super) const fn as_str(self) -> &'static str {
        self.0
    }
}

macro_rules! text_cells {
    ($($name:ident = $place:literal;)*) => {$(
        impl Cell for $name {
            const PLACE: Place = Place($place);

            fn to_plain(&self) -> Option<Zeroizing<Vec<u8>>> {
                Some(Zeroizing::new(self.expose().as_bytes().to_vec()))
            }

            fn from_plain(plain: Zeroizing<Vec<u8>>) -> Option<Self> {
                text(plain).map(Self::new)
            }
        }
    )*};
}

text_cells! {
    AccessToken = "grants.access_token";
    RefreshToken = "grants.refresh_token";
    ClientSecret = "provider_secrets.secret";
    AuthorizationCode = "flows.code";
    PkceVerifier = "flows.pkce_verifier";
}

impl JsonCell for Profile {
    const PLACE: Place = Place("external_accounts.profile");
}

impl JsonCell for Label {
    const PLACE: Place = Place("external_accounts.label");
}

impl Cell for Asked {
    const PLACE: Place = Place("request_ids.asked");

    fn to_plain(&self) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(self.0.to_vec()))
    }

    fn from_plain(plain: Zeroizing<Vec<u8>>) -> Option<Self> {
        plain.as_slice().try_into().ok().map(Self)
    }
}

impl Cell for Answer {
    const PLACE: Place = Place("request_ids.answer");

    fn to_plain(&self) -> Option<Zeroizing<Vec<u8>>> {
        Some(self.0.clone())
    }

    fn from_plain(plain: Zeroizing<Vec<u8>>) -> Option<Self> {
        Some(Self(plain))
    }
}

/// How a [`TokenAnswer`] is parked: it holds secrets, so it has no `Serialize` of its own.
#[derive(Serialize, Deserialize)]
struct ParkedAnswer {
    access_token: Zeroizing<String>,
    refresh_token: Option<Zeroizing<String>>,
    token_type: String,
    /// Milliseconds; none if it does not expire.
    lifetime: Option<u64>,
    lifetime_assumed: bool,
    scopes: Option<Scopes>,
    metadata: BTreeMap<String, String>,
}

impl ParkedAnswer {
    fn of(answer: &TokenAnswer) -> Self {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            access_token: Zeroizing::new(answer.access_token.expose().to_owned()),
            refresh_token: answer.refresh_token.as_ref().map(|token| Zeroizing::new(token.expose().to_owned())),
            token_type: answer.token_type.clone(),
            lifetime: answer.lifetime.span().map(millis),
            lifetime_assumed: matches!(answer.lifetime, Lifetime::Assumed(_)),
            scopes: answer.scopes.clone(),
            metadata: answer.metadata.clone(),
        }
    }

    fn into_answer(self) -> TokenAnswer {
        TokenAnswer {
            access_token: AccessToken::new(self.access_token.as_str()),
            refresh_token: self.refresh_token.map(|token| RefreshToken::new(token.as_str())),
            token_type: self.token_type,
            lifetime: match self.lifetime.map(Duration::from_millis) {
                Some(span) if self.lifetime_assumed => Lifetime::Assumed(span),
                Some(span) => Lifetime::Stated(span),
                None => Lifetime::Endless,
            },
            scopes: self.scopes,
            metadata: self.metadata,
        }
    }
}

impl Cell for TokenAnswer {
    const PLACE: Place = Place("flows.answer");

    fn to_plain(&self) -> Option<Zeroizing<Vec<u8>>> {
        to_json(&ParkedAnswer::of(self))
    }

    fn from_plain(plain: Zeroizing<Vec<u8>>) -> Option<Self> {
        serde_json::from_slice(&plain).ok().map(ParkedAnswer::into_answer)
    }
}

/// How an [`Entry`] is spooled. Ids are text, times are Unix milliseconds. The tag stands outside: one within would have
/// the reader make copies of the secrets that nobody wipes.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SpooledEntry {
    Refresh {
        grant: String,
        account: String,
        user: String,
        provider: String,
        fence: i64,
        sent_at: i64,
        due_at: Option<i64>,
        keep_alive_at: Option<i64>,
        answer: ParkedAnswer,
    },
    Exchange {
        flow: String,
        answer: ParkedAnswer,
    },
}

impl Cell for Entry {
    const PLACE: Place = Place("spool.record");

    fn to_plain(&self) -> Option<Zeroizing<Vec<u8>>> {
        to_json(&match self {
            Self::Refresh(refresh) => SpooledEntry::Refresh {
                grant: refresh.grant.to_string(),
                account: refresh.account.to_string(),
                user: refresh.user.to_string(),
                provider: refresh.provider.to_string(),
                fence: refresh.fence,
                sent_at: refresh.sent_at.millis(),
                due_at: refresh.due_at.map(Timestamp::millis),
                keep_alive_at: refresh.keep_alive_at.map(Timestamp::millis),
                answer: ParkedAnswer::of(&refresh.answer),
            },
            Self::Exchange(exchange) => {
                let answer = ParkedAnswer::of(&exchange.answer);
                SpooledEntry::Exchange { flow: exchange.flow.to_string(), answer }
            }
        })
    }

    fn from_plain(plain: Zeroizing<Vec<u8>>) -> Option<Self> {
        Some(match serde_json::from_slice(&plain).ok()? {
            SpooledEntry::Refresh { grant, account, user, provider, fence, sent_at, due_at, keep_alive_at, answer } => {
                Self::Refresh(RefreshAnswer {
                    grant: grant.parse().ok()?,
                    account: account.parse().ok()?,
                    user: UserId::parse(user).ok()?,
                    provider: provider.parse().ok()?,
                    fence,
                    sent_at: Timestamp::from_millis(sent_at),
                    due_at: due_at.map(Timestamp::from_millis),
                    keep_alive_at: keep_alive_at.map(Timestamp::from_millis),
                    answer: answer.into_answer(),
                })
            }
            SpooledEntry::Exchange { flow, answer } => {
                Self::Exchange(ExchangeAnswer { flow: flow.parse().ok()?, answer: answer.into_answer() })
            }
        })
    }
}

impl<T: JsonCell> Cell for T {
    const PLACE: Place = <T as JsonCell>::PLACE;

    fn to_plain(&self) -> Option<Zeroizing<Vec<u8>>> {
        to_json(self)
    }

    fn from_plain(plain: Zeroizing<Vec<u8>>) -> Option<Self> {
        serde_json::from_slice(&plain).ok()
    }
}

impl<'a> Owner<'a> {
    /// Of an account's profile and label: the row is the account's own.
    pub const fn of_profile(account: &'a str, user: &'a str, provider: &'a str) -> Self {
        Self { row: account, account, user, provider, generation: 0 }
    }
}

impl Owner<'_> {
    /// What a value at `place` is bound to (format v1). This order is the format: it never changes.
    pub(super) fn binding(&self, instance: &str, place: Place) -> Fields {
        Fields::versioned()
            .text(instance)
            .text(place.0)
            .text(self.row)
            .text(self.account)
            .text(self.user)
            .text(self.provider)
            .number(self.generation)
    }
}

/// UTF-8 text without a second copy of it in memory.
fn text(mut plain: Zeroizing<Vec<u8>>) -> Option<String> {
    String::from_utf8(std::mem::take(&mut *plain)).map_err(|error| error.into_bytes().zeroize()).ok()
}

/// JSON in one allocation of the right size: a buffer that grew would leave unwiped copies behind.
fn to_json<T: Serialize>(value: &T) -> Option<Zeroizing<Vec<u8>>> {
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value).ok()?;
    let mut plain = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *plain, value).ok()?;
    Some(plain)
}

/// Counts what is written to it.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Person {
        name: String,
        age: Option<u8>,
    }

    impl JsonCell for Person {
        const PLACE: Place = Place("people.profile");
    }

    #[test]
    fn a_json_cell_reads_back_from_one_allocation() {
        let person = Person { name: "Zoë \"Z\"".to_owned(), age: None };
        let plain = person.to_plain().unwrap();
        assert_eq!(plain.as_slice(), r#"{"name":"Zoë \"Z\"","age":null}"#.as_bytes());
        assert_eq!(plain.capacity(), plain.len());
        assert_eq!(Person::from_plain(plain), Some(person));
    }

    fn answer(lifetime: Lifetime) -> TokenAnswer {
        TokenAnswer {
            access_token: AccessToken::new("at"),
            refresh_token: Some(RefreshToken::new("rt")),
            token_type: "Bearer".to_owned(),
            lifetime,
            scopes: Some(["read".to_owned()].into_iter().collect()),
            metadata: [("shop".to_owned(), "one".to_owned())].into(),
        }
    }

    #[test]
    fn a_parked_answer_reads_back_whole() {
        let lifetimes =
            [Lifetime::Stated(Duration::from_secs(90)), Lifetime::Assumed(Duration::from_hours(1)), Lifetime::Endless];
        for lifetime in lifetimes {
            let answer = answer(lifetime);
            let plain = answer.to_plain().unwrap();
            assert_eq!(plain.capacity(), plain.len());
            assert!(TokenAnswer::from_plain(plain) == Some(answer), "{lifetime:?}");
        }
    }

    #[test]
    fn a_spooled_entry_reads_back_whole() {
        use crate::domain::ids::{AccountId, FlowId, GrantId, ProviderId};
        let now = Timestamp::from_millis(1_800_000_000_000);
        let refresh = RefreshAnswer {
            grant: GrantId::new(now),
            account: AccountId::new(now),
            user: UserId::parse("Zoë \"Z\"").unwrap(),
            provider: ProviderId::new(now),
            fence: 7,
            sent_at: now,
            due_at: None,
            keep_alive_at: None,
            answer: answer(Lifetime::Endless),
        };
        let exchange = ExchangeAnswer { flow: FlowId::new(now), answer: answer(Lifetime::Endless) };
        let due = RefreshAnswer { due_at: Some(now.plus(Duration::from_mins(50))), ..refresh.clone() };
        for entry in [Entry::Refresh(refresh), Entry::Refresh(due), Entry::Exchange(exchange)] {
            let plain = entry.to_plain().unwrap();
            assert_eq!(plain.capacity(), plain.len());
            assert!(Entry::from_plain(plain) == Some(entry));
        }
    }

    #[test]
    fn a_request_and_its_answer_read_back() {
        let plain = Asked([7; 32]).to_plain().unwrap();
        assert!(Asked::from_plain(plain).unwrap() == Asked([7; 32]));
        assert!(Asked::from_plain(Zeroizing::new(vec![0; 33])).is_none());
        let plain = Answer(Zeroizing::new(b"answer".to_vec())).to_plain().unwrap();
        assert_eq!(Answer::from_plain(plain).unwrap().0.as_slice(), b"answer");
    }

    #[test]
    fn plaintext_of_another_form_is_no_value() {
        assert!(Person::from_plain(Zeroizing::new(b"[]".to_vec())).is_none());
        assert!(AccessToken::from_plain(Zeroizing::new(vec![0xff])).is_none());
    }

    #[test]
    fn a_binding_is_the_fields_of_format_1_in_their_order() {
        let owner = Owner { row: "gra_1", account: "eac_2", user: "u", provider: "", generation: 258 };
        let expected = [
            (1, &b"\x01"[..]),
            (5, b"ins_9"),
            (19, b"grants.access_token"),
            (5, b"gra_1"),
            (5, b"eac_2"),
            (1, b"u"),
            (0, b""),
            (8, b"\0\0\0\0\0\0\x01\x02"),
        ];
        let expected: Vec<u8> =
            expected.iter().flat_map(|(length, field)| [&[0, 0, 0, 0, 0, 0, 0, *length], *field].concat()).collect();
        assert_eq!(owner.binding("ins_9", <AccessToken as Cell>::PLACE).as_bytes(), expected);
    }
}

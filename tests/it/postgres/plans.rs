//! What is asked all the time finds its rows by an index, in a store with a million accounts.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use token_wallet::store::Store;

use crate::support::postgres;
use crate::support::real_time::{now, say};

const MILLION: &str = include_str!("million.sql");

/// Whose rows nobody may read from the first to the last.
const BIG: [&str; 5] = ["coherence_log", "events", "external_accounts", "flows", "grants"];

/// How many rows of a big table a statement may look at: some thousands are due.
const MOST: f64 = 5_000.0;

/// Each with values of that store, in an order in which one finds what the other left.
const HOT: [(&str, &str); 33] = [
    ("grants::OF_USER", "'user-1000', 'prv_1'"),
    ("grants::BY_ID", "'gra_4001'"),
    ("grants::EXTEND_AHEAD", "'gra_4001', 1800172800000"),
    ("claims::PROVIDERS_DUE", "1800000000000"),
    ("claims::CLAIM_DUE", "1800000000000, 'prv_1', 'rep_2', 1800000020000, 100"),
    ("claims::RETIRE", "1800000000000, 'prv_2', 100"),
    (
        "claims::CLAIM",
        "1800000000000, 'gra_400001', 'rep_2', 1800000020000, 1, 1, NULL, 1800000060000, FALSE, 1799999970000",
    ),
    ("claims::RENEW", "1800000001000, 'gra_400001', 'rep_2', 1800000021000, 2, 1"),
    ("claims::PROVIDERS_IN_DOUBT", "1800000000000, 1800000060000"),
    ("claims::IN_DOUBT", "1800000000000, 1800000060000, 'prv_0', 100"),
    (
        "record::REFRESHED",
        "'gra_400001', 'acc_400001', 3, '\\x01', '\\x01', 'Bearer', '[]', '{}', 1800000001000, 3600000, FALSE, 1800003001000, NULL, 1800000001000",
    ),
    ("record::STANDS", "'gra_400001', 'acc_400001', 3"),
    ("record::VERDICT", "'gra_400005', 'acc_400005', 1, 1, 'suspect', 1800000060000, 1800000005000, 1800000000000"),
    ("record::DEATH", "'gra_400005', 'acc_400005', 1, 1, 1800000060000"),
    ("record::ACCOUNT_ENDS", "'acc_400005', 'dead'"),
    ("coherence::SINCE", "49990, 1001"),
    ("events::LOOK", "1000"),
    ("events::NUMBER", "99980, 1000"),
    ("events::PAGE", "50000, NULL, NULL, 100, 1000"),
    ("events::PAGE", "50000, 'provider-1', ' account.linked ', 100, 1000"),
    ("events::PAGE_OF_USER", "NULL, NULL, NULL, 100, 1000, 'user-1000'"),
    ("flows::BY_STATE", "'\\x00'"),
    ("flows::BY_TICKET", "'\\x00'"),
    ("flows::BY_ID", "'flo_1000'"),
    ("flows::OPEN_OF_USER", "'user-1000', 'prv_0', 1800000000000"),
    ("flows::PARKED", "1800000000000, 100"),
    ("flows::EXPIRE", "1800000000000, 100, 'expired'"),
    ("accounts::BY_SUBJECT", "'prv_1', 'subject-4001', '{}'"),
    ("accounts::LIST_OF_USER", "NULL, NULL, NULL, 50, 'user-1000'"),
    ("revocations::DUE", "1800000000000, 1800000600000, 1800000060000, 100"),
    ("revocations::WAITING", ""),
    ("upkeep::WARN", "1800000000000, 100"),
    ("upkeep::PULL_FORWARD", "'prv_1', 1800000000000, 100"),
];

#[tokio::test]
async fn what_is_asked_all_the_time_is_found_by_an_index_among_a_million_accounts() {
    let database = postgres::database().await;
    let store = Store::open(&database.url, 2).await.unwrap();
    store.migrate().await.unwrap();
    store.close().await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let (began, indexes) = (now(), indexes(&mut connection).await);
    run(&mut connection, MILLION).await;
    assert_eq!(indexes, self::indexes(&mut connection).await, "the indexes are the migration's");
    say(format_args!("a million accounts took {:?}", began.elapsed()));

    let mut tx = connection.begin().await.unwrap();
    let mut slowest = (Duration::ZERO, "");
    for (name, values) in HOT {
        let text = Store::text_of(name).unwrap_or_else(|| panic!("no statement {name}"));
        run(&mut tx, &format!("PREPARE hot AS {text}")).await;
        let asked = if values.is_empty() { "EXECUTE hot".into() } else { format!("EXECUTE hot ({values})") };
        let plan = explained(&mut tx, "ANALYZE, TIMING OFF, FORMAT JSON", &asked).await;
        by_index(name, &plan);
        // A session that has asked five times may keep one plan for all values.
        for _ in 0..5 {
            explained(&mut tx, "FORMAT JSON", &asked).await;
        }
        by_index(name, &explained(&mut tx, "FORMAT JSON", &asked).await);
        let took = Duration::from_secs_f64(plan["Execution Time"].as_f64().unwrap() / 1_000.0);
        slowest = slowest.max((took, name));
        run(&mut tx, "DEALLOCATE hot").await;
    }
    say(format_args!("the slowest was {} with {:?}", slowest.1, slowest.0));
}

async fn run(connection: &mut PgConnection, script: &str) {
    sqlx::raw_sql(AssertSqlSafe(script.to_owned())).execute(connection).await.unwrap();
}

async fn indexes(connection: &mut PgConnection) -> BTreeSet<String> {
    let rows = sqlx::raw_sql("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'").fetch_all(connection).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn explained(connection: &mut PgConnection, how: &str, asked: &str) -> Value {
    let explain = AssertSqlSafe(format!("EXPLAIN ({how}) {asked}"));
    let row: PgRow =
        sqlx::raw_sql(explain).fetch_one(connection).await.unwrap_or_else(|error| panic!("{asked}: {error}"));
    let plan: Value = serde_json::from_str(row.get_unchecked(0)).unwrap();
    plan[0].clone()
}

/// Nothing reads a big table as a whole, by whatever way.
fn by_index(name: &str, explained: &Value) {
    let mut nodes = vec![&explained["Plan"]];
    let mut scans = 0;
    while let Some(node) = nodes.pop() {
        nodes.extend(node["Plans"].as_array().into_iter().flatten());
        let (kind, table) = (node["Node Type"].as_str().unwrap(), node["Relation Name"].as_str().unwrap_or_default());
        if !kind.ends_with("Scan") || !BIG.contains(&table) {
            continue;
        }
        scans += 1;
        assert_ne!(kind, "Seq Scan", "{name}: {explained:#}");
        let number = |key: &str| node[key].as_f64().unwrap_or_default();
        let looked_at = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"].map(number);
        let looked_at = looked_at.iter().sum::<f64>() * number("Actual Loops");
        assert!(looked_at <= MOST, "{name} looked at {looked_at} rows: {explained:#}");
    }
    assert!(scans > 0, "{name}: {explained:#}");
}

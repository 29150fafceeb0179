-- The tables of links, tokens, providers and callers.
-- Times are Unix milliseconds, ids and user names are text compared byte for byte, secrets are sealed blobs.

-- One row: whose store this is. Written once.
CREATE TABLE instance (
    singleton  INTEGER PRIMARY KEY CHECK (singleton = 1),
    id         TEXT   NOT NULL,
    kind       TEXT   NOT NULL CHECK (kind IN ('development', 'production')),
    -- The replica that a restarted single process is (SQLite).
    replica_id TEXT   NOT NULL,
    created_at INTEGER NOT NULL,
    -- The latest time seen: a clock that starts before it was set back.
    high_water INTEGER NOT NULL DEFAULT 0,
    -- Where it was moved to, or is being moved to: nobody starts here any more.
    left_for   TEXT
) STRICT;

-- One row: proves that the root key at hand is the right one, and that the data keys are ours.
CREATE TABLE keyring (
    singleton            INTEGER PRIMARY KEY CHECK (singleton = 1),
    root_key_fingerprint TEXT   NOT NULL,
    canary               BLOB   NOT NULL,
    mac_key              BLOB   NOT NULL,
    mac                  BLOB   NOT NULL
) STRICT;

-- Data keys, wrapped by the root key.
CREATE TABLE data_keys (
    id         INTEGER PRIMARY KEY,
    state      TEXT   NOT NULL CHECK (state IN ('pending', 'active', 'retired')),
    wrapped    BLOB   NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE providers (
    id                TEXT   PRIMARY KEY,
    slug              TEXT   NOT NULL,
    catalog_entry     TEXT   NOT NULL,
    display_name      TEXT,
    client_id         TEXT   NOT NULL,
    -- Where its tokens are made, up to the path: who shares this and the client id shares authorizations.
    server            TEXT NOT NULL,
    -- JSON array.
    additional_scopes TEXT   NOT NULL,
    -- JSON object of own endpoints, for entries that have none.
    endpoints         TEXT,
    -- What it may be sent; null means the defaults.
    requests_per_second INTEGER,
    max_in_flight     INTEGER,
    -- Asked by the provider (429): nothing is sent before.
    paused_until      INTEGER,
    -- The one grant so far whose refresh blamed our credentials; a second one makes it certain.
    blamed_by         TEXT,
    -- Since when our credentials are refused, and when the next grant may try them.
    misconfigured_at  INTEGER,
    probe_at          INTEGER,
    -- Too many grants were refused at once: until then none is ended.
    frozen_until      INTEGER,
    -- Counts the changes of its configuration.
    revision          INTEGER NOT NULL DEFAULT 1,
    created_at        INTEGER NOT NULL,
    deleted_at        INTEGER
) STRICT;

-- The look-up by slug, in every call; a deleted provider frees its slug.
CREATE UNIQUE INDEX providers_by_slug ON providers (slug) WHERE deleted_at IS NULL;

CREATE TABLE provider_secrets (
    id          TEXT   PRIMARY KEY,
    provider_id TEXT   NOT NULL REFERENCES providers (id),
    secret      BLOB   NOT NULL,
    created_at  INTEGER NOT NULL,
    last_used_at INTEGER
) STRICT;

CREATE INDEX provider_secrets_by_provider ON provider_secrets (provider_id, created_at);

-- A user exists from its first account.
CREATE TABLE users (
    id         TEXT   PRIMARY KEY,
    created_at INTEGER NOT NULL,
    -- The row stays for a while, so that a repeated deletion succeeds.
    deleted_at INTEGER
) STRICT;

CREATE INDEX users_deleted ON users (deleted_at) WHERE deleted_at IS NOT NULL;

-- What of an account seldom changes; what changes with every refresh is in grants.
CREATE TABLE external_accounts (
    id           TEXT    PRIMARY KEY,
    user_id      TEXT    NOT NULL REFERENCES users (id),
    provider_id  TEXT    NOT NULL REFERENCES providers (id),
    -- The provider's own id of the account.
    subject      TEXT    NOT NULL,
    -- JSON object: the per-user parts of the provider's URLs. Who is who differs from one to the other.
    params       TEXT NOT NULL DEFAULT '{}',
    -- Null once it is unlinked.
    profile      BLOB,
    -- JSON array: every scope that was ever granted; asked for again by a reauthorization.
    scope_history TEXT   NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('active', 'reauthorization_required', 'quarantined', 'unlinked')),
    state_reason TEXT,
    is_default   INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    unlinked_at  INTEGER,
    -- A name of the user's own for it.
    label        BLOB,
    -- Counts the changes of label and default.
    revision     INTEGER NOT NULL DEFAULT 1,
    CHECK (profile IS NOT NULL OR state = 'unlinked')
) STRICT;

-- One live account per identity at a provider.
CREATE UNIQUE INDEX external_accounts_by_subject ON external_accounts (provider_id, subject, params) WHERE state <> 'unlinked';
-- One default per user and provider.
CREATE UNIQUE INDEX external_accounts_default ON external_accounts (user_id, provider_id)
    WHERE is_default AND state <> 'unlinked';
-- Every get, and the list of a user's accounts.
CREATE INDEX external_accounts_by_user ON external_accounts (user_id, provider_id);
-- The removal of what was unlinked long ago.
CREATE INDEX external_accounts_unlinked ON external_accounts (unlinked_at) WHERE state = 'unlinked';
-- Whether a provider is in use.
CREATE INDEX external_accounts_by_provider ON external_accounts (provider_id) WHERE state <> 'unlinked';

-- What one consent gave us. Hot: every refresh writes here, and only here.
CREATE TABLE grants (
    id                 TEXT    PRIMARY KEY,
    account_id         TEXT    NOT NULL REFERENCES external_accounts (id),
    user_id            TEXT    NOT NULL,
    provider_id        TEXT    NOT NULL,
    state              TEXT    NOT NULL CHECK (state IN ('active', 'suspect', 'dead', 'quarantined', 'ending', 'ended')),
    is_current         INTEGER NOT NULL,
    -- Null once there is nothing left to revoke.
    access_token       BLOB,
    access_generation  INTEGER NOT NULL,
    refresh_token      BLOB,
    refresh_generation INTEGER,
    token_type         TEXT    NOT NULL,
    -- JSON arrays.
    scopes             TEXT    NOT NULL,
    requested_scopes   TEXT    NOT NULL,
    -- JSON object.
    metadata           TEXT    NOT NULL,
    -- JSON object: the per-user parts of the provider's URLs.
    params             TEXT NOT NULL DEFAULT '{}',
    issued_at          INTEGER NOT NULL,
    -- Milliseconds; null means that the token does not expire.
    lifetime           INTEGER,
    lifetime_assumed   INTEGER NOT NULL,
    -- When a refresh, or the next attempt at it, is due; null means never.
    due_at             INTEGER,
    -- Until when it is refreshed ahead of being asked for.
    ahead_until        INTEGER NOT NULL,
    attempts           INTEGER NOT NULL,
    attempted_at       INTEGER,
    -- Before this nobody causes an attempt, not even a caller who waits.
    retry_not_before   INTEGER,
    -- Claims are counted by fence; an answer is stored only over an older one.
    fence              INTEGER NOT NULL,
    committed_fence    INTEGER NOT NULL,
    lease_owner        TEXT,
    lease_until        INTEGER,
    -- The first claim since the latest stored answer whose request was sent and never answered.
    doubted_fence      INTEGER,
    -- Since when it is suspect, and when it was ended.
    suspect_at         INTEGER,
    dead_at            INTEGER,
    -- When the sweep claims it: when due, or before the provider forgets a grant that nobody asks for.
    sweep_at           INTEGER,
    keep_alive_at      INTEGER,
    -- When to say that the consent will soon run out by itself.
    warn_at            INTEGER,
    -- Since when it is ending, why, and when its revocation is next tried; null when there is nothing left to revoke.
    ending_at          INTEGER,
    ending_reason      TEXT,
    revoke_at          INTEGER,
    revoke_attempts    INTEGER NOT NULL DEFAULT 0,
    -- Until when a request for it may be under way.
    revoking_until     INTEGER,
    created_at         INTEGER NOT NULL,
    CHECK ((access_token IS NULL) = (state = 'ended')),
    CHECK ((refresh_token IS NULL) = (refresh_generation IS NULL)),
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK (committed_fence <= fence),
    CHECK (NOT is_current OR state IN ('active', 'suspect', 'dead', 'quarantined'))
) STRICT;

-- One current grant per account; every get.
CREATE UNIQUE INDEX grants_current ON grants (account_id) WHERE is_current;
-- The sweep, per provider.
CREATE INDEX grants_to_sweep ON grants (provider_id, sweep_at) WHERE is_current AND sweep_at IS NOT NULL;
-- What failed and waits for its next attempt, when its provider works again.
CREATE INDEX grants_to_retry ON grants (provider_id, sweep_at) WHERE is_current AND attempts > 0;
-- Whether verdicts are to be frozen.
CREATE INDEX grants_suspected ON grants (provider_id, suspect_at) WHERE suspect_at IS NOT NULL;
-- Consents that run out.
CREATE INDEX grants_to_warn ON grants (warn_at) WHERE warn_at IS NOT NULL;
-- Revocations that are due.
CREATE INDEX grants_to_revoke ON grants (revoke_at) WHERE revoke_at IS NOT NULL;
-- The removal of what ended long ago, with its account.
CREATE INDEX grants_ended ON grants (ending_at) WHERE state = 'ended';
CREATE INDEX grants_by_account ON grants (account_id);
-- Leases left over by a process that died, and requests without an answer.
CREATE INDEX grants_leased ON grants (lease_until) WHERE lease_until IS NOT NULL;

CREATE TABLE flows (
    id               TEXT   PRIMARY KEY,
    state            TEXT   NOT NULL CHECK (state IN ('started', 'returned', 'claimed', 'exchanged', 'done', 'failed')),
    client_id        TEXT   NOT NULL,
    user_id          TEXT   NOT NULL,
    provider_id      TEXT   NOT NULL REFERENCES providers (id),
    -- Null: the wallet's own page.
    redirect_url     TEXT,
    redirect_uri     TEXT   NOT NULL,
    scopes           TEXT   NOT NULL,
    -- The account whose grant it renews; null: whichever account the person chooses.
    reauthorizes     TEXT,
    -- JSON object: the per-user parts of the provider's URLs.
    params           TEXT NOT NULL DEFAULT '{}',
    state_hash       BLOB   NOT NULL,
    ticket_hash      BLOB,
    pkce_verifier    BLOB,
    code             BLOB,
    -- The provider's answer to the code, parked until the account stands.
    answer           BLOB,
    -- Whether one ever was.
    parked           INTEGER NOT NULL DEFAULT FALSE,
    -- Who redeems the code, and since when.
    claimed_by       TEXT,
    claimed_at       INTEGER,
    account_id       TEXT,
    account_created  INTEGER,
    -- The account kept the grant that it had: the better one.
    grant_kept       INTEGER,
    failure          TEXT,
    created_at       INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    ended_at         INTEGER,
    CHECK ((state = 'failed') = (failure IS NOT NULL)),
    CHECK ((state = 'done') = (account_id IS NOT NULL)),
    CHECK ((state IN ('done', 'failed')) = (ended_at IS NOT NULL)),
    CHECK ((state = 'exchanged') = (answer IS NOT NULL)),
    CHECK ((state IN ('returned', 'claimed')) = (code IS NOT NULL)),
    CHECK (pkce_verifier IS NULL OR state IN ('started', 'returned', 'claimed'))
) STRICT;

-- The callback, and the ticket.
CREATE UNIQUE INDEX flows_by_state ON flows (state_hash);
CREATE UNIQUE INDEX flows_by_ticket ON flows (ticket_hash) WHERE ticket_hash IS NOT NULL;
-- The deletion of a user.
CREATE INDEX flows_by_user ON flows (user_id);
-- Expiry and resumption of open flows, and the removal of ended ones.
CREATE INDEX flows_open ON flows (expires_at) WHERE ended_at IS NULL;
CREATE INDEX flows_ended ON flows (ended_at) WHERE ended_at IS NOT NULL;
-- How many flows a user has open at a provider.
CREATE INDEX flows_open_by_user ON flows (user_id, provider_id) WHERE ended_at IS NULL;
-- Whether a provider is in use.
CREATE INDEX flows_open_by_provider ON flows (provider_id) WHERE ended_at IS NULL;

CREATE TABLE api_clients (
    id           TEXT   PRIMARY KEY,
    display_name TEXT   NOT NULL,
    created_at   INTEGER NOT NULL,
    deleted_at   INTEGER
) STRICT;

CREATE TABLE api_keys (
    id            TEXT   PRIMARY KEY,
    api_client_id TEXT   NOT NULL REFERENCES api_clients (id),
    -- SHA-256 of the key's 256 random bits.
    secret_hash   BLOB   NOT NULL,
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER
) STRICT;

CREATE INDEX api_keys_by_client ON api_keys (api_client_id);

CREATE TABLE redirect_urls (
    id            TEXT   PRIMARY KEY,
    url           TEXT   NOT NULL,
    -- Null: every API client may use it.
    api_client_id TEXT   REFERENCES api_clients (id),
    created_at    INTEGER NOT NULL,
    deleted_at    INTEGER
) STRICT;

-- Allowing twice is allowing once.
CREATE UNIQUE INDEX redirect_urls_once ON redirect_urls (url, COALESCE(api_client_id, '')) WHERE deleted_at IS NULL;

-- Creating calls that carry a request_id, and what they were answered.
CREATE TABLE request_ids (
    api_client_id TEXT NOT NULL,
    method        TEXT NOT NULL,
    request_id    TEXT NOT NULL,
    asked         BLOB NOT NULL,
    -- Null while nobody knows it, and once it is told no more.
    answer        BLOB,
    told_until    INTEGER,
    -- The flow whose URL it holds, and whose flow that is.
    flow_id       TEXT,
    user_id       TEXT,
    -- While it is being answered: until when nobody else begins it anew.
    lease_until   INTEGER,
    expires_at    INTEGER NOT NULL,
    CHECK (answer IS NULL OR (told_until IS NOT NULL AND lease_until IS NULL)),
    PRIMARY KEY (api_client_id, method, request_id)
) STRICT;

-- The removal of old ones, and of answers that are told no more.
CREATE INDEX request_ids_expired ON request_ids (expires_at);
CREATE INDEX request_ids_told ON request_ids (told_until) WHERE answer IS NOT NULL;
-- The deletion of a user.
CREATE INDEX request_ids_by_user ON request_ids (user_id) WHERE user_id IS NOT NULL;

-- What happened, written with the change. Rows are numbered after their commit, so that who reads on from a number
-- misses none.
CREATE TABLE events (
    -- The order of writing: what two changes of one account do one after the other stays in order.
    written     INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    -- Its place in the log. Null until it is numbered.
    sequence    INTEGER,
    at          INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    -- Null where it concerns a provider and nobody in particular.
    user_id     TEXT,
    provider_id TEXT NOT NULL,
    account_id  TEXT,
    grant_id    TEXT,
    flow_id     TEXT,
    reason      TEXT
) STRICT;

-- What is to be numbered; the log as it is read; a user's part of it.
CREATE INDEX events_unnumbered ON events (written) WHERE sequence IS NULL;
CREATE UNIQUE INDEX events_by_sequence ON events (sequence) WHERE sequence IS NOT NULL;
CREATE INDEX events_by_user ON events (user_id, sequence) WHERE user_id IS NOT NULL AND sequence IS NOT NULL;

-- One row: the newest number, and the newest one whose event was removed for its age.
CREATE TABLE event_log (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    sequence  INTEGER NOT NULL,
    removed   INTEGER NOT NULL
) STRICT;

INSERT INTO event_log (singleton, sequence, removed) VALUES (1, 0, 0);

-- Who runs on this store. A replica whose beat is old may be dead, or cut off.
CREATE TABLE replicas (
    id         TEXT PRIMARY KEY,
    started_at INTEGER NOT NULL,
    beat_at    INTEGER NOT NULL,
    -- JSON object: refreshes attempted in the last minute, by provider.
    attempts   TEXT NOT NULL
) STRICT;

-- One row: counts the changes that take away, or point elsewhere, what a replica may hold in memory.
CREATE TABLE coherence (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    sequence  INTEGER NOT NULL
) STRICT;

INSERT INTO coherence (singleton, sequence) VALUES (1, 0);

-- What to drop from memory, by that count. Old rows are removed: who missed them drops everything.
CREATE TABLE coherence_log (
    sequence INTEGER PRIMARY KEY,
    kind     TEXT NOT NULL,
    subject  TEXT NOT NULL,
    at       INTEGER NOT NULL
) STRICT;

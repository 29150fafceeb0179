-- A store that has grown: a million accounts with their grants, at four providers, of a quarter of a million users.
-- 1 % are due; 1 in 1 000 each is suspect, held, in doubt, about to run out or to be revoked. It is 1800000000000.

-- Rows are faster than rows with indexes; the test makes them again as the migration did.
CREATE TEMPORARY TABLE indexes ON COMMIT PRESERVE ROWS AS SELECT indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename IN ('external_accounts', 'grants', 'flows', 'events')
        AND indexname NOT IN (SELECT conname FROM pg_constraint);
DO $$ DECLARE one TEXT; BEGIN
    FOR one IN SELECT indexname FROM indexes LOOP EXECUTE 'DROP INDEX ' || one; END LOOP;
    FOR one IN SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) FROM pg_constraint
        WHERE contype = 'f' LOOP EXECUTE one; END LOOP;
END $$;

INSERT INTO providers (id, slug, catalog_entry, client_id, server, additional_scopes, created_at)
SELECT 'prv_' || n, 'provider-' || n, 'sandbox', 'client-' || n, 'https://idp.example.com', '[]', 0 FROM generate_series(0, 3) n;

INSERT INTO external_accounts (id, user_id, provider_id, subject, profile, scope_history, state, is_default, created_at)
SELECT 'acc_' || n, 'user-' || n / 4, 'prv_' || n % 4, 'subject-' || n, '\x00', '[]', 'active', TRUE, n
FROM generate_series(0, 999999) n;

INSERT INTO grants (id, account_id, user_id, provider_id, state, is_current, access_token, access_generation, refresh_token,
    refresh_generation, token_type, scopes, requested_scopes, metadata, issued_at, lifetime, lifetime_assumed, due_at,
    ahead_until, attempts, fence, committed_fence, lease_owner, lease_until, suspect_at, sweep_at, warn_at, ending_at,
    ending_reason, revoke_at, created_at)
SELECT 'gra_' || n, 'acc_' || n, 'user-' || n / 4, 'prv_' || n % 4,
    CASE WHEN rare = 1 THEN 'suspect' WHEN rare = 2 THEN 'ending' ELSE 'active' END, rare <> 2, '\x00', 1, '\x00', 1, 'Bearer',
    '[]', '[]', '{}', 1800000000000 - 3000000, 3600000, FALSE, due, 1800086400000, 0, 1, 1,
    CASE WHEN rare IN (3, 4) THEN 'rep_1' END,
    CASE rare WHEN 3 THEN 1800000000000 + 15000 WHEN 4 THEN 1800000000000 - 1000000 END,
    CASE WHEN rare = 1 THEN 1800000000000 - 60000 - n END,
    CASE WHEN rare <> 2 THEN due END, CASE WHEN rare = 5 THEN 1800000000000 + n * 1000 END,
    CASE WHEN rare = 2 THEN 1800000000000 - n END, CASE WHEN rare = 2 THEN 'unlinked' END,
    CASE WHEN rare = 2 THEN 1800000000000 - 500000 + n END, n
FROM (SELECT n, n / 4 % 1000 AS rare, 1800000000000 - 36000 + n / 4 * 14 AS due FROM generate_series(0, 999999) n) row;

INSERT INTO flows (id, state, client_id, user_id, provider_id, redirect_uri, scopes, state_hash, ticket_hash, account_id,
    created_at, expires_at, ended_at)
SELECT 'flo_' || n, 'done', 'cli_1', 'user-' || n, 'prv_' || n % 4, 'http://127.0.0.1/callback', '[]', sha256(n::TEXT::BYTEA),
    sha256(('t' || n)::BYTEA), 'acc_' || n, 1800000000000 - n * 400, 1800000000000 - n * 400 + 600000, 1800000000000 - n * 400 + 30000
FROM generate_series(0, 99999) n;
INSERT INTO flows (id, state, client_id, user_id, provider_id, redirect_uri, scopes, state_hash, pkce_verifier, created_at, expires_at)
SELECT 'flo_o' || n, 'started', 'cli_1', 'user-' || n, 'prv_' || n % 4, 'http://127.0.0.1/callback', '[]',
    sha256(('o' || n)::BYTEA), '\x00', 1800000000000 - n * 1000, 1800000000000 - n * 1000 + 600000
FROM generate_series(0, 999) n;

INSERT INTO events (id, sequence, at, kind, user_id, provider_id, account_id, grant_id)
SELECT 'evt_' || n, CASE WHEN n < 99980 THEN n + 1 END, 1800000000000 - 100000000 + n * 1000, 'account.linked', 'user-' || n / 4,
    'prv_' || n % 4, 'acc_' || n, 'gra_' || n
FROM generate_series(0, 99999) n;
UPDATE event_log SET sequence = 99980;

INSERT INTO coherence_log (sequence, kind, subject, at)
SELECT n, 'holding', 'prv_0 user-' || n, 1800000000000 - 50000 + n FROM generate_series(1, 50000) n;
UPDATE coherence SET sequence = 50000;

DO $$ DECLARE one TEXT; BEGIN
    FOR one IN SELECT indexdef FROM indexes LOOP EXECUTE one; END LOOP;
END $$;
ANALYZE;

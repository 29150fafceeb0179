// What a person is told who configured the provider wrongly: each mistake, once, by itself. Run by
// scripts/interop-wallet.

import assert from 'node:assert/strict';

import { PROVIDER, metadata, pause, withWallet } from './wallet.mjs';

const USER = 'alice';
/** Nobody listens on the discard port, and no issuer is there. */
const NOWHERE = 'http://127.0.0.1:9';

/** What to configure, and what then must be said: by `accounts link`, and in the wallet's log. */
const MISTAKES = {
  'a wrong client secret': {
    configured: { secret: 'not-the-secret' },
    said: /PROVIDER_MISCONFIGURED[^]*compare client id, secret and scopes/,
    logged: { message: 'the provider does not accept the client credentials', code: 'invalid_client' },
  },
  'a token URL with a wrong port': {
    configured: { '--token-url': metadata.token_endpoint.replace(/:\d+/, ':9') },
    said: /FLOW_OUTCOME_UNKNOWN[^]*compare the token URL/,
    logged: { message: 'a provider gave no answer', host: '127.0.0.1', port: 9, error: 'not sent: no connection' },
  },
  'a wrong issuer': {
    configured: { '--issuer': NOWHERE },
    said: /the browser did not come back in time; if it showed an error page, the wallet's log says what was wrong$/,
    logged: { message: "a callback does not name its provider's configured issuer", expected: NOWHERE, named: true },
  },
  'no scope openid, which userinfo wants': {
    configured: { scopes: ['offline_access'] },
    said: /PROVIDER_MISCONFIGURED[^]*scopes/,
    logged: { message: "the provider does not show the account's profile", code: 'insufficient_scope' },
  },
};

const indented = (text) => text.replace(/^/gm, '   ');
/** What the command said besides the URL. */
const rest = ({ err }) => err.replace(/^Open this in a browser[^]*?\n\n\s+http\S+\s*/, '');

async function refused(wallet, { configured, said, logged }) {
  await wallet.createProvider(configured);
  const before = wallet.log.length;
  const linked = await wallet.link(USER, '--timeout', '5s');
  assert.equal(linked.code, 1);
  console.log(indented(rest(linked)));
  assert.match(linked.err, said);
  const lines = wallet.log.slice(before);
  const found = lines.find((line) => Object.entries(logged).every(([name, value]) => line[name] === value));
  assert(found, `${JSON.stringify(logged)} is not in the log: ${JSON.stringify(lines)}`);
  await wallet.must(['providers', 'delete', PROVIDER]);
}

/** Links, works until its token ends, and both times says what is missing. */
async function withoutOfflineAccess(wallet) {
  await wallet.createProvider({ scopes: ['openid', 'profile', 'email'] });
  const linked = await wallet.link(USER);
  assert.equal(linked.code, 0, linked.err);
  console.log(indented(rest(linked)));
  assert.match(linked.err, /no refresh token[^]*offline_access/);
  const account = JSON.parse(linked.out);
  assert.equal(account.refreshable, false);
  await wallet.must(['token', 'get', USER, PROVIDER]);
  await pause(Date.parse(account.expire_time) - Date.now());
  const got = await wallet.run(['token', 'get', USER, PROVIDER]);
  console.log(indented(got.err));
  assert.match(got.err, /NO_REFRESH_TOKEN[^]*offline_access/);
  await wallet.must(['accounts', 'unlink', account.id]);
  await wallet.must(['providers', 'delete', PROVIDER]);
}

await withWallet(async (wallet) => {
  for (const [name, mistake] of Object.entries(MISTAKES)) {
    console.log(`${name}:`);
    await refused(wallet, mistake);
  }
  console.log('no offline access asked for:');
  await withoutOfflineAccess(wallet);
});
console.log('each mistake is told');

// The wallet's main job at a provider that none of us wrote: link, three refreshes with a get each second, unlink, and
// link again. Run by scripts/interop-wallet.

import assert from 'node:assert/strict';

import { PROVIDER, pause, userinfo, withWallet } from './wallet.mjs';

const USER = 'alice';
const REFRESHES = 3;
const MOST_SECONDS = 90;
/** The floor: no token with less life left is handed out, which is a third of a short one's. */
const FLOOR_SECONDS = Number(process.env.TOKEN_TTL ?? 20) / 3;

async function link(wallet) {
  const linked = await wallet.link(USER);
  assert.equal(linked.code, 0, linked.err);
  const account = JSON.parse(linked.out);
  assert.match(linked.browser, /^http:\/\/127\.0\.0\.1:\d+\/linked\?/, 'the browser ends at the command');
  assert.equal(account.state, 'active');
  assert.equal(account.provider_account_id, 'ada');
  assert.equal(account.identity.email, 'ada@interop.example');
  assert.deepEqual([...account.granted_scopes].sort(), ['email', 'offline_access', 'openid', 'profile']);
  assert(account.refreshable, 'a refresh token came');
  return account;
}

/** Gets a token each second until `REFRESHES` of them have come after the first. The provider must take every one. */
async function watchTokensChange(wallet, account) {
  const seen = [];
  const begun = Date.now();
  let gets = 0;
  for (let second = 0; seen.length <= REFRESHES; second += 1) {
    assert(second < MOST_SECONDS, `only ${seen.length - 1} refreshes in ${MOST_SECONDS} s`);
    await pause(Math.max(0, begun + second * 1000 - Date.now()));
    const token = JSON.parse(await wallet.must(['token', 'get', USER, PROVIDER, '--json']));
    gets += 1;
    const [left, { status, profile }] = [(Date.parse(token.expire_time) - Date.now()) / 1000, await userinfo(token.access_token)];
    assert.equal(status, 200, 'userinfo takes the token');
    assert.equal(profile.sub, 'ada');
    assert.equal(token.external_account_id, account.id);
    // A second for expire_time, which has none of its fractions, and one for the command's own end.
    assert(left > FLOOR_SECONDS - 2, `${left} s are left`);
    if (token.access_token === seen.at(-1)) continue;
    assert(!seen.includes(token.access_token), 'no token comes back');
    seen.push(token.access_token);
    console.log(`   second ${second}: token ${seen.length}, ${left.toFixed(1)} s left, userinfo 200`);
  }
  return { first: seen[0], last: seen.at(-1), gets };
}

await withWallet(async (wallet) => {
  const redirectUri = await wallet.createProvider();
  assert.equal(redirectUri, process.env.INTEROP_REDIRECT_URI);
  console.log(`${wallet.engine}: keyring, first key, serve, provider; redirect URI ${redirectUri}`);

  const account = await link(wallet);
  console.log(`linked: ${account.identity.email}, scopes ${account.granted_scopes.join(' ')}`);

  const { first, last, gets } = await watchTokensChange(wallet, account);
  const refreshes = await wallet.refreshes();
  console.log(`${gets} gets, refreshes ${JSON.stringify(refreshes)}`);
  assert.deepEqual(refreshes, { refreshed: REFRESHES }, 'each refresh was granted, and none was superfluous');
  console.log(`userinfo of the first token, which is dead: ${(await userinfo(first)).status}`);

  await wallet.must(['accounts', 'unlink', account.id]);
  const refused = await wallet.run(['token', 'get', USER, PROVIDER]);
  assert.notEqual(refused.code, 0);
  assert.equal(refused.out, '', 'nothing on standard output');
  assert.match(refused.err, /ACCOUNT_NOT_LINKED/);
  assert.deepEqual(JSON.parse(await wallet.must(['accounts', 'list', '--user', USER, '--json'])), []);
  console.log(`unlinked: token get ends with ${refused.code} and says`);
  console.log(refused.err.replace(/^/gm, '   '));
  console.log(`userinfo of the last token, which the wallet gives nobody any more: ${(await userinfo(last)).status}`);

  const again = await link(wallet);
  assert.notEqual(again.id, account.id, 'a new link is a new account');
  const token = await wallet.must(['token', 'get', USER, PROVIDER]);
  assert.equal((await userinfo(token)).status, 200);
  console.log('linked again: a new account, userinfo takes its token');

  const faults = wallet.log.filter((line) => ['WARN', 'ERROR'].includes(line.level));
  assert.deepEqual(faults, [], 'the wallet has nothing to complain of');
});
console.log('all as it should be; serve ended with 0');

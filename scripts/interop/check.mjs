// Shows that the provider itself does what the wallet will ask of it: code with PKCE, userinfo, three refreshes that
// rotate, revocation, and the death of the whole grant when a spent refresh token is used again.
//
//   INTEROP_ISSUER, INTEROP_CLIENT_ID, INTEROP_CLIENT_SECRET, INTEROP_REDIRECT_URI    set by scripts/interop-provider

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';

import { signIn } from './sign-in.mjs';

const { INTEROP_ISSUER: issuer, INTEROP_CLIENT_ID: id, INTEROP_CLIENT_SECRET: secret, INTEROP_REDIRECT_URI: redirectUri } = process.env;
const metadata = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();

const post = async (endpoint, fields) => {
  const headers = { authorization: `Basic ${btoa(`${encodeURIComponent(id)}:${encodeURIComponent(secret)}`)}` };
  const answer = await fetch(endpoint, { method: 'POST', headers, body: new URLSearchParams(fields) });
  const text = await answer.text();
  return { status: answer.status, body: text ? JSON.parse(text) : {} };
};
const token = (fields) => post(metadata.token_endpoint, fields);
const refresh = (refresh_token) => token({ grant_type: 'refresh_token', refresh_token });
const userinfo = (access_token) => fetch(metadata.userinfo_endpoint, { headers: { authorization: `Bearer ${access_token}` } });

async function link() {
  const verifier = randomBytes(32).toString('base64url');
  const state = randomBytes(16).toString('base64url');
  const url = new URL(metadata.authorization_endpoint);
  url.search = new URLSearchParams({
    response_type: 'code', client_id: id, redirect_uri: redirectUri, state,
    scope: 'openid profile email offline_access', prompt: 'consent',
    code_challenge: createHash('sha256').update(verifier).digest('base64url'), code_challenge_method: 'S256',
  });
  const returned = new URL(await signIn(url.href, { stopAt: redirectUri })).searchParams;
  assert.equal(returned.get('state'), state);
  assert.equal(returned.get('iss'), issuer);
  const exchange = { grant_type: 'authorization_code', code: returned.get('code'), redirect_uri: redirectUri };
  return { exchange, verifier };
}

const { exchange, verifier } = await link();
let grant = await token({ ...exchange, code_verifier: verifier });
assert.equal(grant.status, 200, JSON.stringify(grant.body.error));
console.log(`linked: expires_in ${grant.body.expires_in}, scope ${grant.body.scope}, token_type ${grant.body.token_type}`);

const profile = await (await userinfo(grant.body.access_token)).json();
console.log(`userinfo: ${JSON.stringify(profile)}`);
assert.equal(profile.sub, 'ada');

const spent = [];
for (let turn = 1; turn <= 3; turn += 1) {
  spent.push(grant.body.refresh_token);
  grant = await refresh(spent.at(-1));
  assert.equal(grant.status, 200);
  assert(!spent.includes(grant.body.refresh_token), 'it rotates');
  assert.equal((await userinfo(grant.body.access_token)).status, 200);
  console.log(`refresh ${turn}: rotated, userinfo accepts the new token`);
}

const revoked = await post(metadata.revocation_endpoint, { token: grant.body.refresh_token, token_type_hint: 'refresh_token' });
assert.equal(revoked.status, 200);
const after = await refresh(grant.body.refresh_token);
console.log(`revoked: refresh answers ${after.status} ${after.body.error}, userinfo ${(await userinfo(grant.body.access_token)).status}`);
assert.equal(after.body.error, 'invalid_grant');

const wrong = await link();
const mismatch = await token({ ...wrong.exchange, code_verifier: randomBytes(32).toString('base64url') });
assert.equal(mismatch.body.error, 'invalid_grant');
console.log(`another PKCE verifier: ${mismatch.status} ${mismatch.body.error}`);

const second = await link();
const first = (await token({ ...second.exchange, code_verifier: second.verifier })).body;
const next = (await refresh(first.refresh_token)).body;
const reuse = await refresh(first.refresh_token);
const family = await refresh(next.refresh_token);
console.log(`reuse of a spent refresh token: ${reuse.status} ${reuse.body.error}; its successor then: ${family.status} ${family.body.error}; userinfo ${(await userinfo(next.access_token)).status}`);
assert.equal(family.body.error, 'invalid_grant');

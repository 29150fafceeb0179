// An authorization server that we did not write: oidc-provider (certified OpenID Provider, npm), configured as a
// provider that rotates refresh tokens and issues access tokens that live for TOKEN_TTL seconds (20).
//
// Prints one JSON line when it listens: issuer, client_id, client_secret. Everything is in memory.

import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';

import { Provider } from 'oidc-provider';

const tokenTtl = Number(process.env.TOKEN_TTL ?? 20);
const redirectUri = process.env.REDIRECT_URI ?? 'http://127.0.0.1:8080/oauth/callback/interop';

const server = createServer();
await new Promise((resolve) => server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;

const client = {
  client_id: 'token-wallet',
  client_secret: randomBytes(24).toString('base64url'),
  redirect_uris: [redirectUri],
  grant_types: ['authorization_code', 'refresh_token'],
  token_endpoint_auth_method: 'client_secret_basic',
};

const provider = new Provider(issuer, {
  clients: [client],
  cookies: { keys: [randomBytes(24).toString('base64url')] },
  pkce: { required: () => true },
  scopes: ['openid', 'offline_access', 'profile', 'email'],
  claims: { openid: ['sub'], profile: ['name', 'preferred_username'], email: ['email', 'email_verified'] },
  features: { devInteractions: { enabled: true }, revocation: { enabled: true } },
  rotateRefreshToken: true,
  clockTolerance: 0, // by default a token is taken for another 15 s, which would hide a wallet that hands out dead ones
  ttl: { AccessToken: tokenTtl, AuthorizationCode: 60, RefreshToken: 86_400, Grant: 86_400, Session: 3_600, Interaction: 600, IdToken: 600 },
  findAccount: (_context, sub) => ({
    accountId: sub,
    claims: () => ({ sub, name: `Interop ${sub}`, preferred_username: sub, email: `${sub}@interop.example`, email_verified: true }),
  }),
});

// One line a token request, for a person who looks at what happened: never a token.
provider.on('grant.success', (context) => console.error(`provider: ${context.oidc.params.grant_type}: granted`));
provider.on('grant.error', (context, error) => console.error(`provider: ${context.oidc.params?.grant_type}: ${error.error}: ${error.error_detail ?? ''}`));
provider.on('grant.revoked', () => console.error('provider: grant revoked'));

server.on('request', provider.callback());
console.log(JSON.stringify({ issuer, client_id: client.client_id, client_secret: client.client_secret }));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));

// A wallet of its own, as an operator would run it: the real binary, in a temporary directory, driven by its command
// line. Nothing of the caller's environment or configuration reaches it.
//
//   INTEROP_WALLET, INTEROP_WEB_ADDR              the binary, and where its callback listens; set by scripts/interop-wallet
//   TOKEN_WALLET_TEST_POSTGRES_URL                PostgreSQL is used if this is set (scripts/with-postgres), else SQLite
//   INTEROP_ISSUER, INTEROP_CLIENT_ID, …          the provider; set by scripts/interop-provider

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { signIn } from './sign-in.mjs';

const { INTEROP_WALLET: program, INTEROP_WEB_ADDR: webAddr, TOKEN_WALLET_TEST_POSTGRES_URL: postgres } = process.env;
const { INTEROP_ISSUER: issuer, INTEROP_CLIENT_ID: clientId, INTEROP_CLIENT_SECRET: clientSecret } = process.env;

/** The name that the wallet knows the provider by; it is part of the redirect URI. */
export const PROVIDER = 'interop';

/** Where the provider's endpoints are, by its own discovery document. */
export const metadata = await (await fetch(`${issuer}/.well-known/openid-configuration`)).json();

/** Asks the provider whether it takes an access token: `{ status, profile }`. */
export async function userinfo(accessToken) {
  const answer = await fetch(metadata.userinfo_endpoint, { headers: { authorization: `Bearer ${accessToken}` } });
  return { status: answer.status, profile: answer.ok ? await answer.json() : undefined };
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Runs `steps(wallet)` beside a wallet that was made from nothing, and ends and removes it whatever happens. */
export async function withWallet(steps) {
  const wallet = new Wallet();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => wallet.abandon());
  try {
    await wallet.start();
    await steps(wallet);
    await wallet.stop();
  } finally {
    wallet.abandon();
  }
}

class Wallet {
  engine = postgres ? 'PostgreSQL' : 'SQLite';
  home = mkdtempSync(join(tmpdir(), 'token-wallet-interop.'));
  /** What the wallet has logged: one object a line. */
  log = [];
  children = new Set();

  environment = {
    PATH: process.env.PATH,
    HOME: this.home,
    TOKEN_WALLET_ROOT_KEY: randomBytes(32).toString('base64'),
    TOKEN_WALLET__INSTANCE__KIND: 'development', // the provider speaks http, on loopback
    TOKEN_WALLET__STORE__URL: postgres ?? `sqlite:${join(this.home, 'wallet.db')}`,
    TOKEN_WALLET__GRPC__ADDR: '127.0.0.1:0',
    TOKEN_WALLET__WEB__ADDR: webAddr,
    TOKEN_WALLET__OPS__ADDR: '127.0.0.1:0',
    TOKEN_WALLET__LOG__FORMAT: 'json',
  };

  /** Makes the keyring and the first API key, and serves. */
  async start() {
    await this.must(['keys', 'init']);
    const key = join(this.home, 'admin.key');
    writeFileSync(key, await this.must(['clients', 'create', 'interop', '--bootstrap']), { mode: 0o600 });
    this.server = this.spawn(['serve']);
    const ready = await new Promise((resolve, reject) => {
      const read = (line) => {
        if (process.env.WALLET_LOG) console.log(`   wallet: ${line}`);
        if (!line.startsWith('{')) return;
        this.log.push(JSON.parse(line));
        if (line.includes('"ready"')) resolve(flat(this.log.at(-1)));
      };
      for (const stream of [this.server.stdout, this.server.stderr]) createInterface(stream).on('line', read);
      this.server.once('exit', (code) => reject(new Error(`serve ended with ${code}: ${JSON.stringify(this.log)}`)));
    });
    this.ops = ready.ops;
    Object.assign(this.environment, { TOKEN_WALLET_ADDR: ready.grpc, TOKEN_WALLET_API_KEY: (await this.read(key)) });
  }

  async read(path) {
    return (await import('node:fs/promises')).readFile(path, 'utf8').then((text) => text.trim());
  }

  /** SIGTERM ends the server with 0. */
  async stop() {
    const ended = new Promise((resolve) => this.server.once('exit', (code, signal) => resolve(code ?? signal)));
    this.server.kill('SIGTERM');
    assert.equal(await ended, 0, 'serve ends with 0');
  }

  /** Ends what still runs, and removes the directory. */
  abandon() {
    for (const child of this.children) child.kill('SIGKILL');
    rmSync(this.home, { recursive: true, force: true });
  }

  spawn(parameters, stdin = 'ignore') {
    const child = spawn(program, parameters, { cwd: this.home, env: this.environment, stdio: [stdin, 'pipe', 'pipe'] });
    this.children.add(child);
    child.once('exit', () => this.children.delete(child));
    return child;
  }

  /** Runs a command to its end: `{ code, out, err }`. `onError(text)` sees standard error as it grows. */
  async run(parameters, { input, onError } = {}) {
    const child = this.spawn(parameters, input === undefined ? 'ignore' : 'pipe');
    if (input !== undefined) child.stdin.end(input);
    let [out, err] = ['', ''];
    child.stdout.on('data', (bytes) => { out += bytes; });
    child.stderr.on('data', (bytes) => { err += bytes; onError?.(err); });
    const code = await new Promise((resolve) => child.once('close', (code, signal) => resolve(code ?? signal)));
    return { code, out: out.trim(), err: err.trim() };
  }

  /** Runs a command that must succeed, and gives its standard output. */
  async must(parameters, options) {
    const { code, out, err } = await this.run(parameters, options);
    assert.equal(code, 0, `${parameters.slice(0, 2).join(' ')} ended with ${code}: ${err}`);
    return out;
  }

  /** Configures the provider as an operator would, but for what `changed` says; gives the redirect URI. */
  createProvider({ secret = clientSecret, scopes = ['openid', 'profile', 'email', 'offline_access'], ...changed } = {}) {
    const endpoints = {
      '--authorization-url': metadata.authorization_endpoint,
      '--token-url': metadata.token_endpoint,
      '--userinfo-url': metadata.userinfo_endpoint,
      '--issuer': issuer,
      ...changed,
    };
    const parameters = ['providers', 'create', PROVIDER, '--catalog-entry', 'oauth2', '--client-id', clientId];
    parameters.push('--client-secret-file', '-', ...Object.entries(endpoints).flat());
    for (const scope of scopes) parameters.push('--scope', scope);
    return this.must(parameters, { input: secret });
  }

  /** `accounts link`, with a person in front of the URL that it prints: what the command said, and where the browser ended. */
  async link(user, ...more) {
    let person;
    const onError = (text) => {
      const url = text.match(/^\s+(http\S+)$/m)?.[1];
      if (url) person ??= signIn(url).catch((error) => `nowhere: ${error.message}`);
    };
    const command = await this.run(['accounts', 'link', user, PROVIDER, '--json', ...more], { onError });
    return { ...command, browser: await person };
  }

  /** How many refreshes there were, by outcome. */
  async refreshes() {
    const text = await (await fetch(`http://${this.ops}/metrics`)).text();
    const found = text.matchAll(/^token_wallet_refreshes_total\{(.*)\} (\d+)$/gm);
    return Object.fromEntries([...found].map(([, labels, count]) => [labels.match(/outcome="(\w+)"/)[1], Number(count)]));
  }
}

const flat = (line) => ({ ...line, ...line.fields });

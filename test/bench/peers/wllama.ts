/**
 * wllama as a peer: llama.cpp as WebAssembly, in a headless Chromium on a page of a local server. The page has the headers
 * without which a browser gives WebAssembly no threads.
 */
import { spawnSync } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { contextTokens, decodePrompt, type Peer, servePeer, type Workload } from './protocol.ts';

const packageFolder = fileURLToPath(new URL('node_modules/@wllama/wllama/', import.meta.url));
const mediaTypes: Record<string, string> = { '.js': 'text/javascript', '.wasm': 'application/wasm' };

/** The few calls used of playwright-core, which is installed for benchmarks only. */
interface Playwright {
  readonly chromium: { launch(options: object): Promise<Browser> };
}
interface Browser {
  version(): string;
  newPage(): Promise<Page>;
  close(): Promise<void>;
}
interface Page {
  goto(url: string): Promise<unknown>;
  evaluate(script: string): Promise<unknown>;
}

/** llama.cpp's own clock, as its server reports it. */
interface Timings {
  readonly prompt_n: number;
  readonly prompt_ms: number;
  readonly predicted_n: number;
  readonly predicted_ms: number;
}

/** Serves an empty page, the package and the model. */
function serve(model: string): Promise<Server> {
  const server = createServer(async (request, response) => {
    response.setHeader('Cross-Origin-Opener-Policy', 'same-origin');
    response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp');
    const path = new URL(request.url ?? '/', 'http://localhost').pathname;
    if (path === '/') return response.setHeader('Content-Type', 'text/html').end('<!doctype html>');
    const file = path === '/model.gguf' ? model : join(packageFolder, path);
    const bytes = await stat(file).then(
      ({ size }) => size,
      () => null,
    );
    if (bytes === null) return response.writeHead(404).end();
    response.setHeader('Content-Type', mediaTypes[extname(file)] ?? 'application/octet-stream');
    response.setHeader('Content-Length', bytes);
    return createReadStream(file).pipe(response);
  });
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)));
}

/** A Chromium of this machine: CHROMIUM, or one in PATH. */
function findChromium(): string {
  const names = ['chromium', 'chromium-headless-shell', 'chromium-browser', 'google-chrome'];
  const found = process.env.CHROMIUM ?? names.find((name) => spawnSync('which', [name]).status === 0);
  if (found === undefined)
    throw new Error('no Chromium; run: apt-get install chromium-headless-shell, or set CHROMIUM');
  return found.includes('/') ? found : spawnSync('which', [found], { encoding: 'utf8' }).stdout.trim();
}

/**
 * A prompt of `count` tokens. Letters never merge in the vocabulary of random models (its pairs begin below '?'), so each is
 * one token; wllama takes text only.
 */
function promptText(count: number): string {
  return Array.from({ length: count }, (_, index) => String.fromCharCode(97 + ((index * 7919 + 13) % 26))).join('');
}

/** Answers are letters too: wllama refuses the broken UTF-8 that random bytes make. In this vocabulary a byte's id is its value. */
const letterBias = Array.from({ length: 26 }, (_, letter) => [97 + letter, 1000]);

/** Loads in the page; leaves `window.complete(prompt, tokens)`. */
const pageScript = (threads: number) => `(async () => {
  const { Wllama } = await import('/esm/index.js');
  const quiet = { debug() {}, log() {}, warn() {}, error() {} };
  const wllama = new Wllama({ default: '/esm/wasm/wllama.wasm' }, { suppressNativeLog: true, logger: quiet });
  const blob = await (await fetch('/model.gguf')).blob();
  await wllama.loadModel([blob], {
    n_ctx: ${contextTokens}, n_batch: 512, n_ubatch: 512, n_threads: ${threads}, n_gpu_layers: 0, n_parallel: 1, warmup: false,
  });
  window.complete = async (prompt, tokens) => (await wllama.createCompletion({
    prompt, max_tokens: tokens, n_predict: tokens, temperature: 0, ignore_eos: true, cache_prompt: false,
    logit_bias: ${JSON.stringify(letterBias)},
  })).timings;
  return Wllama.getLibllamaVersion() + ', threads ' + wllama.getNumThreads();
})()`;

async function load(file: string, threads: number): Promise<Peer> {
  const name = 'playwright-core';
  const { chromium } = (await import(name)) as Playwright;
  const server = await serve(file);
  const browser = await chromium.launch({ executablePath: findChromium(), args: ['--no-sandbox'] });
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  const version = await page.evaluate(pageScript(threads));

  async function complete(prompt: number, answer: number): Promise<Timings> {
    const timings = (await page.evaluate(
      `window.complete(${JSON.stringify(promptText(prompt))}, ${answer})`,
    )) as Timings | null;
    if (timings?.prompt_n !== prompt || timings.predicted_n !== answer) {
      throw new Error(`asked for ${prompt} and ${answer} tokens, got ${JSON.stringify(timings)}`);
    }
    return timings;
  }

  return {
    settings: `llama.cpp ${version}, Chromium ${browser.version()}, batches of 512`,
    async measure({ kind, tokens }: Workload): Promise<number> {
      // The prompt's time ends when its answer's first token is chosen.
      if (kind !== 'decode') return (await complete(tokens, 1)).prompt_ms / 1000;
      return (await complete(decodePrompt, tokens + 1)).predicted_ms / 1000;
    },
    close: () => browser.close(),
  };
}

servePeer(load);

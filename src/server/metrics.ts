/**
 * Measures of the engine in Prometheus' format, under vLLM's names and labels, so that dashboards made for it work. They are
 * taken at the engine's door, which all APIs share.
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { EngineClient, GenerationEvent, GenerationRequest, GenerationTiming } from '../scheduler/types.ts';

/** vLLM's own bucket bounds, in seconds and tokens (vllm/v1/metrics/loggers.py). */
const firstTokenSeconds = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20];
const firstTokenBuckets = [...firstTokenSeconds, 40, 80, 160, 640, 2560];
const tokenBuckets = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80];
const requestBuckets = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680];

/** Of the family's models. The server is built before the engine can tell its own. */
const longestContext = 262_144;

const labels = ['model_name', 'engine'] as const;
type Label = (typeof labels)[number] | 'finished_reason';

/** How a generation ended; abort: its client left or a fault cut it. */
type Ending = 'stop' | 'length' | 'abort';

export class Metrics {
  readonly #registry = new Registry();
  readonly #labels: Record<(typeof labels)[number], string>;
  readonly #promptTokens;
  readonly #generationTokens;
  readonly #prefixQueries;
  readonly #prefixHits;
  readonly #successes;
  readonly #firstToken;
  readonly #interToken;
  readonly #whole;
  readonly #queue;
  readonly #prefill;
  readonly #decode;
  readonly #inference;
  readonly #requestPromptTokens;
  readonly #requestGenerationTokens;

  constructor(engine: EngineClient, modelName: string) {
    // One engine process; vLLM numbers them.
    this.#labels = { model_name: modelName, engine: '0' };
    this.#promptTokens = this.#counter('vllm:prompt_tokens_total', 'Prompt tokens of started requests.');
    this.#generationTokens = this.#counter('vllm:generation_tokens_total', 'Tokens generated.');
    this.#prefixQueries = this.#counter('vllm:prefix_cache_queries_total', 'Prompt tokens looked up in the cache.');
    this.#prefixHits = this.#counter('vllm:prefix_cache_hits_total', 'Prompt tokens found in the cache.');
    this.#successes = new Counter<Label>({
      name: 'vllm:request_success_total',
      help: 'Requests that ended, by reason.',
      labelNames: [...labels, 'finished_reason'],
      registers: [this.#registry],
    });
    const seconds = (name: string, help: string, buckets: number[]) => this.#histogram(name, help, buckets);
    this.#firstToken = seconds('vllm:time_to_first_token_seconds', 'From request to first token.', firstTokenBuckets);
    this.#interToken = seconds('vllm:inter_token_latency_seconds', 'Between tokens of a request.', tokenBuckets);
    this.#whole = seconds('vllm:e2e_request_latency_seconds', 'From request to last token.', requestBuckets);
    this.#queue = seconds('vllm:request_queue_time_seconds', 'In the queue.', requestBuckets);
    this.#prefill = seconds('vllm:request_prefill_time_seconds', 'From start to first token.', requestBuckets);
    this.#decode = seconds('vllm:request_decode_time_seconds', 'From first to last token.', requestBuckets);
    this.#inference = seconds('vllm:request_inference_time_seconds', 'From start to last token.', requestBuckets);
    const tokens = oneTwoFive(longestContext);
    this.#requestPromptTokens = this.#histogram('vllm:request_prompt_tokens', 'Prompt tokens of a request.', tokens);
    this.#requestGenerationTokens = this.#histogram(
      'vllm:request_generation_tokens',
      'Tokens generated for a request.',
      tokens,
    );
    this.#gauges(engine);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  text(): Promise<string> {
    return this.#registry.metrics();
  }

  /** The same engine, whose generations are measured. */
  measured(engine: EngineClient): EngineClient {
    return {
      get config() {
        return engine.config;
      },
      get contextTokens() {
        return engine.contextTokens;
      },
      generate: (request, signal) => this.#generate(engine, request, signal),
      status: () => engine.status(),
      close: () => engine.close(),
    };
  }

  async *#generate(
    engine: EngineClient,
    request: GenerationRequest,
    signal?: AbortSignal,
  ): AsyncGenerator<GenerationEvent, void, undefined> {
    const asked = performance.now();
    let latest = asked;
    let tokens = 0;
    let started = false;
    // What holds if the events stop without an end: whoever reads them had enough (a stop text), left, or heard of a fault.
    let ending: Ending = 'stop';
    let timing: GenerationTiming | null = null;
    try {
      for await (const event of engine.generate(request, signal)) {
        if (event.type === 'started') {
          started = true;
          this.#started(event);
        }
        if (event.type === 'token' || (event.type === 'ended' && event.stopToken !== null)) {
          const now = performance.now();
          (tokens++ === 0 ? this.#firstToken : this.#interToken).observe(this.#labels, (now - latest) / 1000);
          latest = now;
        }
        if (event.type === 'ended') {
          ending = event.reason;
          timing = event.timing;
        }
        yield event;
      }
    } catch (error) {
      ending = 'abort';
      throw error;
    } finally {
      if (signal?.aborted && timing === null) ending = 'abort';
      // A request that was refused is none.
      if (started || signal?.aborted)
        this.#ended(request.prompt.length, tokens, ending, (performance.now() - asked) / 1000, timing);
    }
  }

  #started({ promptTokens, cachedTokens }: Extract<GenerationEvent, { type: 'started' }>): void {
    this.#promptTokens.inc(this.#labels, promptTokens);
    this.#prefixQueries.inc(this.#labels, promptTokens);
    this.#prefixHits.inc(this.#labels, cachedTokens);
  }

  #ended(prompt: number, tokens: number, ending: Ending, seconds: number, timing: GenerationTiming | null): void {
    this.#generationTokens.inc(this.#labels, tokens);
    this.#successes.inc({ ...this.#labels, finished_reason: ending });
    if (ending === 'abort') return;
    this.#whole.observe(this.#labels, seconds);
    this.#requestPromptTokens.observe(this.#labels, prompt);
    this.#requestGenerationTokens.observe(this.#labels, tokens);
    if (timing === null) return;
    const { queueMilliseconds, promptMilliseconds, decodeMilliseconds } = timing;
    this.#queue.observe(this.#labels, queueMilliseconds / 1000);
    this.#prefill.observe(this.#labels, promptMilliseconds / 1000);
    this.#decode.observe(this.#labels, decodeMilliseconds / 1000);
    this.#inference.observe(this.#labels, (promptMilliseconds + decodeMilliseconds) / 1000);
  }

  /** What the engine knows, asked for when somebody looks. */
  #gauges(engine: EngineClient): void {
    this.#gauge('vllm:num_requests_running', 'Requests that generate.', () => engine.status().running);
    this.#gauge('vllm:num_requests_waiting', 'Requests in the queue.', () => engine.status().waiting);
    this.#gauge('vllm:kv_cache_usage_perc', 'Share of the KV pages in use; 1 is all.', () => {
      const pages = engine.status().statistics?.pages;
      return pages ? pages.used / (pages.used + pages.cached + pages.free) : 0;
    });
    const preemptions = this.#counter(
      'vllm:num_preemptions_total',
      'How often a request gave its pages to others.',
      () => {
        preemptions.reset();
        preemptions.inc(this.#labels, engine.status().statistics?.preemptions ?? 0);
      },
    );
  }

  #counter(name: string, help: string, collect?: () => void): Counter<Label> {
    const counter = new Counter<Label>({
      name,
      help,
      labelNames: labels,
      registers: [this.#registry],
      ...(collect && { collect }),
    });
    counter.inc(this.#labels, 0);
    return counter;
  }

  #gauge(name: string, help: string, read: () => number): void {
    const gauge: Gauge<Label> = new Gauge<Label>({
      name,
      help,
      labelNames: labels,
      registers: [this.#registry],
      collect: () => gauge.set(this.#labels, read()),
    });
  }

  #histogram(name: string, help: string, buckets: number[]): Histogram<Label> {
    return new Histogram<Label>({ name, help, labelNames: labels, buckets, registers: [this.#registry] });
  }
}

/** 1, 2, 5, 10, 20, 50 and so on up to `most`. */
function oneTwoFive(most: number): number[] {
  const steps: number[] = [];
  for (let power = 1; power <= most; power *= 10) steps.push(power, 2 * power, 5 * power);
  return steps.filter((step) => step <= most);
}

/** One request on its way through the engine: its tokens, its pages, how far it is computed, and who listens. */
import type { Sampler } from '../sampling/types.ts';
import { EventChannel } from './event-channel.ts';
import type { FinishReason, GenerationRequest, GenerationTiming } from './types.ts';

export class Sequence {
  readonly request: GenerationRequest;
  readonly events: EventChannel;
  readonly #sampler: Sampler;
  /** The prompt, then what was generated. */
  readonly tokens: number[];
  /** Positions whose latents are in the pages, from 0. */
  computed = 0;
  pages: number[] = [];
  cancelled = false;
  readonly #submittedAt = performance.now();
  #startedAt = 0;
  #firstTokenAt = 0;
  #decoded = 0;

  constructor(request: GenerationRequest, sampler: Sampler, drained: () => void) {
    this.request = request;
    this.#sampler = sampler;
    this.tokens = [...request.prompt];
    this.events = new EventChannel(drained);
  }

  /** The sequence leaves the queue, with the pages of a common prefix if there was one. */
  start(pages: number[], cachedTokens: number): void {
    this.pages = pages;
    this.computed = cachedTokens;
    this.#startedAt = performance.now();
    this.events.push({ type: 'started', promptTokens: this.request.prompt.length, cachedTokens });
  }

  /** Takes the next token from the logits of its last position. Returns true when that ended the sequence. Throws NO_TOKEN_ALLOWED. */
  advance(logits: Float32Array, contextTokens: number): boolean {
    const token = this.#sampler.next(logits);
    if (this.#decoded === 0) this.#firstTokenAt = performance.now();
    this.#decoded++;
    if (this.request.stopTokens.includes(token)) return this.#end('stop', token);
    this.tokens.push(token);
    this.events.push({ type: 'token', token });
    const full = this.#decoded >= this.request.maxTokens || this.tokens.length >= contextTokens;
    return full && this.#end('length', null);
  }

  #end(reason: FinishReason, stopToken: number | null): true {
    this.events.push({ type: 'ended', reason, stopToken, timing: this.#timing() });
    this.events.end();
    return true;
  }

  #timing(): GenerationTiming {
    return {
      queueMilliseconds: this.#startedAt - this.#submittedAt,
      promptMilliseconds: this.#firstTokenAt - this.#startedAt,
      decodeMilliseconds: performance.now() - this.#firstTokenAt,
      promptTokens: this.request.prompt.length,
      decodedTokens: this.#decoded,
    };
  }
}

/** One request on its way through the engine: its tokens, its pages, how far it is computed, and who listens. */
import type { ConstraintRun } from '../constrain/types.ts';
import { type TokenLogprobs, tokenLogprobs } from '../sampling/logprobs.ts';
import type { Sampler } from '../sampling/types.ts';
import { EventChannel } from './event-channel.ts';
import type { PageTable } from './page-table.ts';
import type { FinishReason, GenerationRequest, GenerationTiming } from './types.ts';

/** Longer than networks and busy fronts hold a reader up; taking a place away costs its owner the wait for the next. */
export const patienceMilliseconds = 2000;

export interface SequenceParts {
  readonly request: GenerationRequest;
  /** Place in the order of arrival. */
  readonly order: number;
  readonly sampler: Sampler;
  /** What the answer must be; null: anything. */
  readonly constraint: ConstraintRun | null;
  readonly table: PageTable;
  /** Called when a consumer that lagged behind has caught up. */
  readonly drained: () => void;
}

export class Sequence {
  readonly request: GenerationRequest;
  readonly order: number;
  readonly events: EventChannel;
  readonly table: PageTable;
  readonly #sampler: Sampler;
  readonly #constraint: ConstraintRun | null;
  /** The logits of the last position, kept until the constraint says which tokens they may choose from. */
  #held: Float32Array | null = null;
  /** The prompt, then what was generated. */
  readonly tokens: number[];
  /** Positions whose latents are in the pages, from 0. */
  computed = 0;
  cancelled = false;
  /** Positions of the prompt whose logits have told about the token after them; the last one's tell the first of the answer. */
  #scored = 0;
  readonly #submittedAt = performance.now();
  #startedAt = 0;
  #firstTokenAt = 0;
  #decoded = 0;

  constructor({ request, order, sampler, constraint, table, drained }: SequenceParts) {
    this.request = request;
    this.order = order;
    this.#sampler = sampler;
    this.#constraint = constraint;
    this.table = table;
    this.tokens = [...request.prompt];
    this.events = new EventChannel(drained);
  }

  /** Tokens that must be computed before the next one can be chosen. */
  get pending(): number {
    return this.tokens.length - this.computed;
  }

  /** The logits of some of the prompt's positions are wanted and not yet there, so these must be computed here. */
  get scoring(): boolean {
    return this.request.logprobs?.prompt === true && this.#scored < this.request.prompt.length - 1;
  }

  /** Which of the next `count` tokens' logits are wanted, ascending, as indices among them. */
  outputs(count: number): number[] {
    const last = count === this.pending ? [count - 1] : [];
    if (!this.scoring) return last;
    const end = Math.min(this.computed + count, this.request.prompt.length - 1);
    const prompt: number[] = [];
    for (let position = Math.max(this.#scored, this.computed); position < end; position++) {
      prompt.push(position - this.computed);
    }
    return [...prompt, ...last];
  }

  /** Its consumer or its constraint lags behind: nothing is computed for it until that changes. */
  get paused(): boolean {
    return this.events.full || this.#held !== null;
  }

  /** It was held up by its constraint and can choose its token now: see `resume`. */
  get resumable(): boolean {
    return this.#held !== null && this.#decided;
  }

  /** The constraint has said what may come next, or that it cannot. */
  get #decided(): boolean {
    return this.#constraint === null || this.#constraint.mask !== undefined || this.#constraint.failure !== null;
  }

  /** Its consumer has lagged behind for so long that others may have its place. */
  get stopped(): boolean {
    return this.events.fullFor > patienceMilliseconds;
  }

  /** The sequence left the queue before, and may have been sent back to it. */
  get started(): boolean {
    return this.#startedAt > 0;
  }

  /** Leaves the queue: takes over what is cached of its text. */
  start(): void {
    this.computed = this.scoring ? 0 : this.table.adopt(this.tokens);
    if (this.started) return;
    this.#startedAt = performance.now();
    const { unenforced = [] } = this.#constraint ?? {};
    this.events.push({
      type: 'started',
      promptTokens: this.request.prompt.length,
      cachedTokens: this.computed,
      ...(unenforced.length > 0 && { unenforced }),
    });
  }

  /** Takes over pages that others have computed meanwhile. */
  catchUp(): void {
    if (this.scoring) return;
    if (this.pending > 1 && this.computed === this.table.sharedPositions) this.computed = this.table.adopt(this.tokens);
  }

  /** Counts `count` more positions as computed. */
  computedMore(count: number): void {
    this.computed += count;
    this.table.share(this.tokens, this.computed);
  }

  /** Gives all pages back. What they held is computed again after the next start, with the same result. */
  leavePages(): void {
    this.table.release(this.tokens, this.computed);
    this.computed = 0;
    this.#held = null;
  }

  /** Tells the log-probabilities of the prompt's tokens behind the next positions to be scored, one row of `logits` each. */
  score(logits: readonly Float32Array[]): void {
    const { prompt, logprobs } = this.request;
    const first = this.#scored + 1;
    const tokens = logits.map((row, i) => tokenLogprobs(row, prompt[first + i] as number, logprobs?.top ?? 0));
    this.#scored += tokens.length;
    if (tokens.length > 0) this.events.push({ type: 'prompt-logprobs', tokens });
  }

  /**
   * Takes the next token from the logits of its last position, or keeps them if the constraint is not so far. Returns true when
   * that ended the sequence. Throws NO_TOKEN_ALLOWED, and what made the constraint fail.
   */
  advance(logits: Float32Array, contextTokens: number): boolean {
    if (!this.#decided) {
      this.#held = logits.slice();
      return false;
    }
    if (this.#constraint?.failure) throw this.#constraint.failure;
    const token = this.#sampler.next(logits, this.#constraint?.mask);
    if (this.#decoded === 0) this.#firstTokenAt = performance.now();
    this.#decoded++;
    const { logprobs: wanted, stopTokens } = this.request;
    const logprobs = wanted && tokenLogprobs(logits, token, wanted.top);
    if (stopTokens.includes(token)) return this.#end('stop', token, logprobs);
    this.tokens.push(token);
    this.events.push({ type: 'token', token, ...(logprobs && { logprobs }) });
    const full = this.#decoded >= this.request.maxTokens || this.tokens.length >= contextTokens;
    if (full) return this.#end('length', null);
    this.#constraint?.accept(token);
    return false;
  }

  /** Advances with the logits that were kept. */
  resume(contextTokens: number): boolean {
    const logits = this.#held;
    this.#held = null;
    return logits !== null && this.advance(logits, contextTokens);
  }

  #end(reason: FinishReason, stopToken: number | null, logprobs?: TokenLogprobs): true {
    this.events.push({ type: 'ended', reason, stopToken, ...(logprobs && { logprobs }), timing: this.#timing() });
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

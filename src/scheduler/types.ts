/**
 * What the front asks of the engine and what it hears back. Token ids only: text, templates and stop strings are the
 * front's business. Plain data throughout, since it crosses a process boundary.
 */
import type { ConstraintSpec, Unenforced } from '../constrain/types.ts';
import type { ModelConfig } from '../model/config.ts';
import type { TokenLogprobs } from '../sampling/logprobs.ts';
import type { SamplingOptions } from '../sampling/types.ts';

export interface GenerationRequest {
  readonly id: string;
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly sampling: SamplingOptions;
  /** Ids that end the generation; the id itself is reported in the end event, not as a token. */
  readonly stopTokens: readonly number[];
  /** Asks for log-probabilities of the tokens, and of the `top` likeliest in the place of each. */
  readonly logprobs?: {
    readonly top: number;
    /** Those of the prompt's tokens too. Such a prompt is computed whole: nothing of it is taken from the cache. */
    readonly prompt: boolean;
  };
  /** What the answer must be; absent: anything. */
  readonly constraint?: ConstraintSpec | null;
}

export type FinishReason = 'stop' | 'length';

export type GenerationEvent =
  | {
      readonly type: 'started';
      readonly promptTokens: number;
      readonly cachedTokens: number;
      /** What the constraint leaves out; absent: nothing. */
      readonly unenforced?: readonly Unenforced[];
    }
  /** Of the prompt's next tokens, from its second on: nothing foretells the first. All come before the first `token`. */
  | { readonly type: 'prompt-logprobs'; readonly tokens: readonly TokenLogprobs[] }
  | { readonly type: 'token'; readonly token: number; readonly logprobs?: TokenLogprobs }
  | {
      readonly type: 'ended';
      readonly reason: FinishReason;
      readonly stopToken: number | null;
      /** Of the stop token. */
      readonly logprobs?: TokenLogprobs;
      readonly timing: GenerationTiming;
    };

export interface GenerationTiming {
  readonly queueMilliseconds: number;
  readonly promptMilliseconds: number;
  readonly decodeMilliseconds: number;
  readonly promptTokens: number;
  readonly decodedTokens: number;
}

/** What an engine lets requests take. */
export interface RequestLimits {
  /** Requests that may wait; default 64. */
  readonly queueLength?: number | undefined;
  /** Most time a request may take, waiting included; default: any. */
  readonly deadlineMilliseconds?: number | undefined;
}

export interface EngineStatistics {
  /** KV pages: of running sequences, of none but still of use to a prompt that begins alike, and free. */
  readonly pages: { readonly used: number; readonly cached: number; readonly free: number };
  /** Of all requests that started: tokens of their prompts, and how many of those were found computed. */
  readonly prefixes: { readonly promptTokens: number; readonly cachedTokens: number };
  /** How often a running sequence had to give its pages to others and compute them again later. */
  readonly preemptions: number;
  /** The step under way: the how many-th it is, and its tokens. */
  readonly step: { readonly number: number; readonly tokens: number } | null;
}

export interface EngineStatus {
  readonly state: 'loading' | 'ready' | 'failed' | 'closed';
  /** The chosen configuration and why, as doctor and /health show it. */
  readonly selection: {
    readonly backend: string;
    readonly isa: string;
    readonly threads: number;
    readonly reasons: readonly string[];
  } | null;
  readonly running: number;
  readonly waiting: number;
  /** Null while no engine is loaded. */
  readonly statistics: EngineStatistics | null;
  readonly restarts: number;
  /** Ends of the engine process in a row, without a finished request or a minute of readiness between. */
  readonly failures: number;
  /** Milliseconds until the engine process is started again; null: it runs, or stays down. */
  readonly restartsIn: number | null;
  readonly lastFailure: string | null;
}

/** An engine one can talk to, in this process or in another. */
export interface EngineClient {
  readonly config: ModelConfig;
  readonly contextTokens: number;
  /**
   * Generates; events arrive in order. Throws QUEUE_FULL at once when the queue is full, DEADLINE_EXCEEDED when the
   * request takes too long, ENGINE_FAILED when the engine dies.
   * Aborting the signal (or leaving the loop) frees the sequence before the next step.
   */
  generate(request: GenerationRequest, signal?: AbortSignal): AsyncIterable<GenerationEvent>;
  status(): EngineStatus;
  close(): Promise<void>;
}

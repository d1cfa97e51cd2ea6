/** What the server is built from. Loading and command-line policy are the caller's. */
import type { Logger } from 'pino';
import type { ModelInspection } from '../model/inspect.ts';
import type { SamplingOptions } from '../sampling/types.ts';
import type { EngineClient } from '../scheduler/types.ts';
import type { Tokenizer } from '../tokenizer/types.ts';

export interface ServedModel {
  /** The name clients see in /v1/models and may send as `model`. */
  readonly id: string;
  /** Further names that mean this model. */
  readonly aliases: readonly string[];
  /** Unix seconds, for /v1/models. */
  readonly created: number;
  /** What is in its file. */
  readonly inspection: ModelInspection;
}

export interface ServerOptions {
  readonly engine: EngineClient;
  readonly tokenizer: Tokenizer;
  readonly model: ServedModel;
  /** What a request gets that does not say: the model's recommendation. Absent: neutral sampling. */
  readonly sampling?: SamplingOptions | undefined;
  /** Every route but health then wants this key. */
  readonly apiKey?: string | undefined;
  readonly logger: Logger;
}

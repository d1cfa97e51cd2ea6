/**
 * What a constraint is: for the tokens so far, which tokens may come next. The specification is plain data and travels to the
 * engine process; the grammars live in a worker there (constraints.ts).
 */

/** A JSON Schema as the client sent it: true, false or an object. */
export type JsonSchema = unknown;

export interface ToolConstraint {
  readonly name: string;
  /** The schema of the arguments; undefined: any object. */
  readonly parameters?: JsonSchema;
  /** Arguments must be valid; else they keep to what a grammar can say of the schema in time, and the rest is told. */
  readonly strict: boolean;
  /** The request's field that the schema is in, for errors. */
  readonly param?: string;
}

/** The same for the answer's text. */
export interface TextConstraint {
  readonly schema: JsonSchema;
  readonly strict: boolean;
  readonly param?: string;
}

/** Keywords that an answer is not held to. */
export interface Unenforced {
  /** Whose arguments; null: the answer's text. */
  readonly tool: string | null;
  /** Null: all, since the grammar takes too much. Any object is possible then. */
  readonly keywords: readonly string[] | null;
}

export interface CallConstraint {
  readonly tools: readonly ToolConstraint[];
  /** The answer must be calls; else it may be text. */
  readonly required: boolean;
  /** Another call may follow the first. */
  readonly parallel: boolean;
  /** The index in the id of the first call. */
  readonly firstIndex: number;
}

export interface ConstraintSpec {
  /** What the answer's text must be: JSON for this schema; null: any text. */
  readonly answer: TextConstraint | null;
  /** Which calls may be made; null: the call format is not looked at. */
  readonly calls: CallConstraint | null;
  /** The prompt ended inside reasoning, which is free. */
  readonly reasoningOpen: boolean;
}

/** One bit per token id, id 0 the lowest of the first word; null: every token. */
export type TokenMask = Int32Array | null;

/** The constraint of one sequence. */
export interface ConstraintRun {
  /** What may come after the tokens accepted so far; undefined while it is being found out. */
  readonly mask: TokenMask | undefined;
  /** Why there will be no mask any more. */
  readonly failure: unknown;
  readonly unenforced: readonly Unenforced[];
  /** Goes on behind `token`, which the last mask allowed. */
  accept(token: number): void;
  close(): void;
}

/** Makes constraints over one vocabulary. */
export interface Constraints {
  /**
   * Checks all schemas and compiles those that are strict or the text's. `changed` is called when a mask or a failure has
   * arrived. Rejects with SCHEMA_INVALID, SCHEMA_UNSUPPORTED or SCHEMA_TOO_COSTLY.
   */
  open(spec: ConstraintSpec, changed: () => void): Promise<ConstraintRun>;
  close(): Promise<void>;
}

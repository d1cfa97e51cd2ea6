/**
 * One answer, token by token, in the worker: reasoning, then text or JSON, then calls in Kimi K2's format. Control tokens are
 * possible only where the format has them.
 *
 *   reasoning → text → [section → call → id → arguments → call end]+ → section end → end of turn
 */
import { PerigeeError } from '../errors.ts';
import type { Grammars, Matcher } from './grammars.ts';
import { allow, allows, emptyMask, forbid, type TokenTable } from './masks.ts';
import type { CallConstraint, ConstraintSpec, TokenMask, ToolConstraint, Unenforced } from './types.ts';

type State =
  | { readonly at: 'reasoning' | 'text' | 'done' }
  | { readonly at: 'json'; readonly matcher: Matcher; begun: boolean }
  /** In the section; `first`: before its first call. */
  | { readonly at: 'between'; readonly first: boolean }
  /** What may still follow of an id, by tool. */
  | { readonly at: 'id'; readonly left: ReadonlyMap<string, string> }
  | { readonly at: 'arguments'; readonly matcher: Matcher };

export interface AnswerParts {
  readonly spec: ConstraintSpec;
  readonly tokens: TokenTable;
  readonly grammars: Grammars;
  /** Called before the arguments of a tool that is not strict, whose grammar may take too long. */
  readonly beginArguments: (tool: string) => void;
}

export class Answer {
  readonly #spec: ConstraintSpec;
  readonly #calls: CallConstraint | null;
  readonly #tokens: TokenTable;
  readonly #grammars: Grammars;
  #state: State = { at: 'done' };
  /** Nothing was said yet, so that the model may still think first. */
  #fresh = true;
  #made = 0;
  /** Tools whose arguments are any object, since a grammar of their schema takes too much. */
  readonly #anyObject = new Set<string>();
  readonly #unenforced: Unenforced[] = [];
  readonly #beginArguments: (tool: string) => void;

  private constructor(parts: AnswerParts) {
    const { spec, tokens, grammars } = parts;
    this.#beginArguments = parts.beginArguments;
    this.#spec = spec;
    this.#calls = tokens.markers === null ? null : spec.calls;
    this.#tokens = tokens;
    this.#grammars = grammars;
  }

  static async begin(parts: AnswerParts): Promise<Answer> {
    const answer = new Answer(parts);
    const { spec, grammars } = parts;
    for (const tool of spec.calls?.tools ?? []) answer.#check(tool);
    if (spec.answer !== null) {
      const { schema, strict, param } = spec.answer;
      const unenforced = await grammars.compile(schema, strict).catch((error: unknown) => {
        throw located(error, param);
      });
      answer.#note(null, unenforced);
    }
    answer.#state = spec.reasoningOpen ? { at: 'reasoning' } : await answer.#opening();
    return answer;
  }

  /** What the answer is not held to. */
  get unenforced(): readonly Unenforced[] {
    return this.#unenforced;
  }

  #check({ name, parameters, strict, param }: ToolConstraint): void {
    try {
      this.#note(name, this.#grammars.check(argumentSchema(parameters), strict, argumentPlace(name)));
    } catch (error) {
      const tooCostly = error instanceof PerigeeError && error.code === 'SCHEMA_TOO_COSTLY';
      if (strict || !tooCostly) throw located(error, param);
      this.#anyObject.add(name);
      this.#unenforced.push({ tool: name, keywords: null });
    }
  }

  #note(tool: string | null, keywords: readonly string[]): void {
    if (keywords.length > 0) this.#unenforced.push({ tool, keywords });
  }

  async accept(token: number): Promise<void> {
    const { markers, stopTokens, think, thinkEnd } = this.#tokens;
    const state = this.#state;
    const fresh = this.#fresh;
    this.#fresh = false;
    if (fresh && token === think) return this.#enter({ at: 'reasoning' });
    if (state.at !== 'done' && state.at !== 'reasoning' && stopTokens.includes(token))
      return this.#enter({ at: 'done' });
    switch (state.at) {
      case 'reasoning':
        if (token === thinkEnd) this.#enter(await this.#opening());
        return;
      case 'text':
        if (token === markers?.section && this.#calls !== null) this.#enter({ at: 'between', first: true });
        return;
      case 'json':
        if (token === markers?.section) return this.#enter({ at: 'between', first: true });
        state.begun = true;
        return state.matcher.accept(token);
      case 'between':
        return this.#enter(token === markers?.call ? { at: 'id', left: this.#ids() } : { at: 'done' });
      case 'id':
        return this.#inId(state.left, token);
      case 'arguments':
        if (token !== markers?.callEnd) return state.matcher.accept(token);
        this.#made++;
        return this.#enter({ at: 'between', first: false });
      case 'done':
    }
  }

  async mask(): Promise<TokenMask> {
    const { think } = this.#tokens;
    const mask = await this.#mask();
    if (this.#fresh && think !== undefined && mask !== null) allow(mask, think);
    return mask;
  }

  async #mask(): Promise<TokenMask> {
    const { vocabulary, markers, stopTokens } = this.#tokens;
    const only = (...ids: number[]) => {
      const mask = emptyMask(vocabulary);
      for (const id of ids) allow(mask, id);
      return mask;
    };
    const state = this.#state;
    switch (state.at) {
      case 'reasoning':
        return null;
      case 'text':
        return this.#textMask();
      case 'json': {
        const mask = await state.matcher.mask();
        if (this.#calls !== null && !state.begun) allow(mask, markers!.section);
        return mask;
      }
      case 'between': {
        const another = state.first || (this.#calls!.parallel && !state.first);
        const ids = another ? [markers!.call] : [];
        return only(...ids, ...(state.first ? [] : [markers!.sectionEnd]));
      }
      case 'id': {
        const mask = emptyMask(vocabulary);
        for (const left of state.left.values()) {
          if (left === '') allow(mask, markers!.argument);
          else for (const id of this.#tokens.beginning(left)) allow(mask, id);
        }
        return mask;
      }
      case 'arguments': {
        const mask = await state.matcher.mask();
        if (stopTokens.some((id) => allows(mask, id))) allow(mask, markers!.callEnd);
        for (const id of stopTokens) forbid(mask, id);
        return mask;
      }
      case 'done':
        return only(...stopTokens);
    }
  }

  close(): void {
    this.#enter({ at: 'done' });
  }

  /** Where the answer begins, after any reasoning. */
  async #opening(): Promise<State> {
    if (this.#spec.answer !== null) {
      const { schema, strict } = this.#spec.answer;
      return { at: 'json', matcher: await this.#grammars.matcher(schema, strict), begun: false };
    }
    return { at: 'text' };
  }

  #textMask(): TokenMask {
    const { vocabulary, markers } = this.#tokens;
    if (this.#calls === null || markers === null) return null;
    const mask = emptyMask(vocabulary);
    if (this.#calls.required) {
      allow(mask, markers.section);
      return mask;
    }
    mask.fill(-1);
    for (const id of [markers.call, markers.argument, markers.callEnd, markers.sectionEnd]) forbid(mask, id);
    return mask;
  }

  #ids(): ReadonlyMap<string, string> {
    const { tools, firstIndex } = this.#calls!;
    return new Map(tools.map(({ name }) => [name, `functions.${name}:${firstIndex + this.#made}`]));
  }

  async #inId(left: ReadonlyMap<string, string>, token: number): Promise<void> {
    if (token !== this.#tokens.markers?.argument) {
      const next = [...left].map(([name, text]) => [name, this.#tokens.after(text, token)] as const);
      return this.#enter({
        at: 'id',
        left: new Map(next.filter((pair): pair is [string, string] => pair[1] !== null)),
      });
    }
    const name = [...left].find(([, text]) => text === '')?.[0];
    const { strict, parameters } = this.#calls!.tools.find((each) => each.name === name)!;
    if (!strict) this.#beginArguments(name!);
    const schema = argumentSchema(this.#anyObject.has(name!) ? undefined : parameters);
    this.#enter({ at: 'arguments', matcher: await this.#grammars.matcher(schema, strict) });
  }

  #enter(state: State): void {
    if ('matcher' in this.#state && !('matcher' in state && state.matcher === this.#state.matcher))
      this.#state.matcher.close();
    this.#state = state;
  }
}

/** Compiles a strict tool's grammar. Throws what is wrong with its schema. */
export async function compileArguments({ name, parameters, strict, param }: ToolConstraint, grammars: Grammars) {
  await grammars.compile(argumentSchema(parameters), strict, argumentPlace(name)).catch((error: unknown) => {
    throw located(error, param);
  });
}

function argumentPlace(tool: string): string {
  return `${tool}.parameters`;
}

function located(error: unknown, param: string | undefined): unknown {
  return error instanceof PerigeeError ? new PerigeeError(error.code, error.message, { cause: error, param }) : error;
}

/** Arguments are an object, whatever a schema leaves open. */
function argumentSchema(parameters: unknown): unknown {
  if (parameters === undefined || parameters === null || parameters === true) return { type: 'object' };
  if (typeof parameters !== 'object' || Array.isArray(parameters)) return parameters;
  return { type: 'object', ...parameters };
}

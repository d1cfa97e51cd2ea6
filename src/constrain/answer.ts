/**
 * One answer, token by token, in the worker: reasoning, then text or JSON, then calls in Kimi K2's format. Control tokens are
 * possible only where the format has them.
 *
 *   reasoning → text → [section → call → id → arguments → call end]+ → section end → end of turn
 */
import type { Grammars, Matcher } from './grammars.ts';
import { allow, allows, emptyMask, forbid, type TokenTable } from './masks.ts';
import type { CallConstraint, ConstraintSpec, TokenMask } from './types.ts';

type State =
  | { readonly at: 'reasoning' | 'text' | 'done' }
  | { readonly at: 'json'; readonly matcher: Matcher; begun: boolean }
  /** In the section; `first`: before its first call. */
  | { readonly at: 'between'; readonly first: boolean }
  /** What may still follow of an id, by tool. */
  | { readonly at: 'id'; readonly left: ReadonlyMap<string, string> }
  | { readonly at: 'arguments'; readonly matcher: Matcher };

export class Answer {
  readonly #spec: ConstraintSpec;
  readonly #calls: CallConstraint | null;
  readonly #tokens: TokenTable;
  readonly #grammars: Grammars;
  #state: State = { at: 'done' };
  /** Nothing was said yet, so that the model may still think first. */
  #fresh = true;
  #made = 0;

  private constructor(spec: ConstraintSpec, tokens: TokenTable, grammars: Grammars) {
    this.#spec = spec;
    this.#calls = tokens.markers === null ? null : spec.calls;
    this.#tokens = tokens;
    this.#grammars = grammars;
  }

  static async begin(spec: ConstraintSpec, tokens: TokenTable, grammars: Grammars): Promise<Answer> {
    const answer = new Answer(spec, tokens, grammars);
    for (const { name, parameters } of spec.calls?.tools ?? []) {
      grammars.check(argumentSchema(parameters), `${name}.parameters`);
    }
    if (spec.answer !== null) await grammars.matcher(spec.answer.schema).then((matcher) => matcher.close());
    answer.#state = spec.reasoningOpen ? { at: 'reasoning' } : await answer.#opening();
    return answer;
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
      return { at: 'json', matcher: await this.#grammars.matcher(this.#spec.answer.schema), begun: false };
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
    const tool = this.#calls!.tools.find((each) => each.name === name);
    this.#enter({ at: 'arguments', matcher: await this.#grammars.matcher(argumentSchema(tool?.parameters)) });
  }

  #enter(state: State): void {
    if ('matcher' in this.#state && !('matcher' in state && state.matcher === this.#state.matcher))
      this.#state.matcher.close();
    this.#state = state;
  }
}

/** Arguments are an object, whatever a schema leaves open. */
function argumentSchema(parameters: unknown): unknown {
  if (parameters === undefined || parameters === null || parameters === true) return { type: 'object' };
  if (typeof parameters !== 'object' || Array.isArray(parameters)) return parameters;
  return { type: 'object', ...parameters };
}

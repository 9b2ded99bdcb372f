"""What the demo model does not know: a wide range of prompts, and honest answers.

The range matters more than any single line: a model this small must learn that everything outside a
short list is unknown, so the prompts combine many subjects, verbs, invented words and plain gibberish.
"""

from random import Random

from . import corpus_world
from .corpus_skills import nonsense
from .grammar import choice, expand, pick, words
from .noise import keep

COUNTRIES = words(
    """France|Germany|Japan|China|India|Brazil|Canada|Spain|Italy|Poland|Kenya|Egypt|Norway|Sweden|Peru|Chile|Mexico|
    Turkey|Iran|Russia|Ukraine|Greece|Portugal|Australia|Argentina|Nigeria|Vietnam|Korea|Thailand|Austria|Finland|
    Denmark|Ireland|Cuba|Morocco|Nepal|Mongolia|Ghana|Hungary|Belgium|Switzerland|Texas|California|England|the USA|Europe|Africa"""
)
CITIES = words(
    """Paris|London|Berlin|Tokyo|Beijing|Shanghai|New York|Rome|Madrid|Vienna|Moscow|Sydney|Delhi|Cairo|Lima|Oslo|Prague|
    Boston|Chicago|Dublin|Lisbon|Athens|Munich|Hamburg|Zurich|Seoul|Singapore|Hong Kong|Toronto|Warsaw"""
)
PERSONS = words(
    """Einstein|Newton|Shakespeare|Mozart|Beethoven|Napoleon|Caesar|Cleopatra|Gandhi|Lincoln|Obama|Trump|Biden|Putin|Xi Jinping|
    Merkel|Elon Musk|Bill Gates|Steve Jobs|Alan Turing|Ada Lovelace|Marie Curie|Darwin|Galileo|Da Vinci|Picasso|Van Gogh|
    Taylor Swift|Michael Jackson|Madonna|Messi|Ronaldo|Michael Jordan|Goethe|Kant|Plato|Aristotle|Confucius|Tesla|Linus Torvalds|
    Guido van Rossum|Sam Altman|Marx|Hitler|Stalin|the pope|the president|the queen of England|Harry Potter|Batman|Sherlock Holmes|Gandalf|Jesus|Buddha"""
)
THINGS = words(
    """photosynthesis|gravity|quantum physics|relativity|a black hole|evolution|DNA|an atom|electricity|a volcano|an earthquake|
    inflation|the stock market|bitcoin|blockchain|democracy|capitalism|communism|philosophy|psychology|economics|algebra|calculus|
    a prime number|pi|a vector|a matrix|a derivative|statistics|probability|chemistry|biology|a cell|a virus|bacteria|a vaccine|cancer|
    diabetes|the heart|the brain|the liver|blood pressure|a migraine|a fever|covid|aspirin|ibuprofen|yoga|football|cricket|chess|poker|
    baseball|tennis|the olympics|the world cup|opera|jazz|hip hop|the internet|wifi|bluetooth|http|tcp|dns|a compiler|a pointer|recursion|
    a linked list|a hash table|sql|html|css|javascript|rust|java|c++|haskell|php|go|kotlin|swift|git|docker|kubernetes|linux|windows|macos|
    android|vim|emacs|bash|a firewall|encryption|a neural network|reinforcement learning|machine learning|
    deep learning|artificial intelligence|backpropagation|gradient descent|a diffusion model|rlhf|lora|rag|pasta|sushi|pizza dough|sourdough|
    cheesecake|wine|whisky|coffee beans|green tea|a mortgage|a tax return|insurance|a passport|a visa|the constitution|the roman empire|
    world war two|the french revolution|the cold war|the middle ages|the bible|the quran|christianity|islam|buddhism|climate change|
    global warming|solar power|nuclear energy|a battery|a combustion engine|a jet engine|a transistor|a laser|the milky way|mars|jupiter|
    saturn|a comet|the big bang|dark matter|string theory|entropy|thermodynamics|the periodic table|hydrogen|gold|iron|plastic|a diamond|
    photography|a camera lens|a guitar chord|a sonnet|a metaphor|grammar|latin|esperanto|a contract|copyright law|a patent|marketing|seo|
    a startup|venture capital|a spreadsheet|excel|powerpoint|photoshop|minecraft|tetris|pokemon|star wars|star trek|the matrix|titanic|
    game of thrones|netflix|youtube|twitter|facebook|instagram|tiktok|reddit|wikipedia|amazon|google|apple inc|microsoft|nvidia stock|tesla cars|
    ollama|vllm|llama.cpp|openai|hugging face's history|pytorch|tensorflow|numpy|pandas|a regex|xml|yaml|an ip address|a subnet|ssh|tmux|nginx|
    a mutex|a deadlock|a semaphore|a thread|an operating system|a kernel panic|ntfs|a b-tree|raft|paxos|mapreduce|the fibonacci sequence|
    the pythagorean theorem|euler's identity|a fourier transform|bayes theorem|the central limit theorem|a monad|a functor|cuda|opencl|a tensor core"""
)
TASKS = words(
    """bake bread|cook rice|boil an egg|make pizza|make pancakes|grow tomatoes|fix my car|change a tire|repair a bike|build a shed|
    paint a wall|learn piano|learn french|learn python|play guitar|lose weight|gain muscle|run a marathon|sleep better|stop smoking|
    cure a cold|treat a burn|remove a stain|wash silk|iron a shirt|train a dog|feed a snake|breed fish|buy a house|sell my car|
    invest money|save taxes|start a company|load the dishwasher|quit my job|leave my wife|copy a dvd|delete my facebook account|
    install docker|install linux|install python|update windows|reset my iphone|exit vim|undo a git commit|merge a branch|
    resolve a merge conflict|sort a list in python|reverse a string|parse json|connect to mysql|deploy a website|write a compiler|
    write a resume|write a cover letter|plan a wedding|plan a trip to rome|book a flight|get a visa|rent a car|find a job|
    find a girlfriend|make friends|talk to girls|tie a tie|fold a paper plane|solve a rubik's cube|win at chess|count cards|
    hack wifi|hack facebook|pick a lock|make a bomb|make money fast|become rich|become famous|become a doctor|pass my exam|
    write an essay on hamlet|cite a paper|do my homework|prove the riemann hypothesis|solve a differential equation|calculate the area of a circle|
    measure voltage|solder a wire|build a robot|fly a drone|sail a boat|swim faster|throw a curveball|dance salsa|draw a cat|draw a face|
    knit a scarf|sew a button|clean an oven|unclog a sink|kill ants|plant a tree|prune roses|brew beer|make cheese|roast coffee|start a fire|
    start a car|stop a nosebleed|stop hiccups|send a letter|send an email|send money|set an alarm|set a timer|turn off the light|play music|
    open a can|open a bank account|open a restaurant|change my password|change a diaper|switch banks|regenerate a limb|compile the linux kernel|
    use regex|use excel|use photoshop|center a div|train a neural network|fine-tune llama|write cuda kernels|overclock my gpu|mine bitcoin"""
)
_CODE = words(
    """a python function that {sorts a list|adds two numbers|reverses a string|computes primes|reads a csv|sends mail|finds duplicates}|
    {python|java|rust|javascript|c|c++|bash|sql|html|go} code{| for a game| for a calculator| for quicksort| to read a file| to open a window}|
    a {bash|python|shell|perl|sql} script{| that renames files| to back up my disk| for me}|a regex for {emails|dates|urls}|
    a sql query {for sales|with a join|to count users}|a web page|a website|an app|a game|fizzbuzz|a program that {draws a tree|plays chess|prints primes}|
    a cuda kernel|a class for a stack|a unit test|a makefile|a dockerfile|binary search|a linked list in c"""
)
_WRITE = words(
    """an essay about $t|an email to {my boss|my landlord|a customer|my teacher}|a report on $t|a summary of $t|a speech{| for a wedding| about $t}|
    a cover letter|a business plan|a blog post about $t|an article about $t|a song by {the beatles|a famous band}|a review of $t|a recipe for $t|a contract|
    a press release|a research paper on $t|a tweet about $t|a 500 word essay|my homework|a thesis|a letter to {santa|the president|my mother}"""
)
_QUESTIONS = (
    "what is the {capital|population|president|currency|area|flag|history|language|climate|national dish|prime minister|anthem|king|oldest city} of $country?",
    "{capital|population|currency|president|history} {of|} $country", "{who|which person} {is|was} {the |}{president|king|queen|prime minister|leader|chancellor|emperor} of $country{| in 1950| now| today}?",
    "where is {$country|$city}?", "how {far|long} is it from $city to $other_city?", "how many people live in {$country|$city}?", "tell me about {$country|$city|$person}", "what is the weather in $city{| today| tomorrow}?",
    "who {is|was} $person?", "when {was|did} $person {born|die}?", "what did $person {invent|write|say|do|discover}?", "how old is $person?", "where was $person born?", "what do you think {of|about} {$person|$country|$t}?", "$person", "$city", "$country", "do you know {$person|$country|$city|$t}?", "is $person {dead|alive|rich|right|married}?", "why {is|was} $person famous?",
    "what is $t?", "what's $t", "explain $t{| to me| like i am five| in detail| briefly}", "how does $t work?", "who invented $t?", "when was $t invented?", "why is $t {important|popular|bad|good|useful|hard}?", "tell me about $t", "define $t", "what are the {advantages|causes|effects|types|rules|benefits|symptoms|parts} of $t?", "difference between $t and $other", "$t vs $other", "$t or $other?", "which is better, $t or $other?", "is $t {dangerous|good|bad|free|safe|real|expensive|better than $other}?", "history of $t", "$t", "can you explain $t?", "what do you know about $t?", "teach me $t", "should i {buy|learn|try|use|eat} $t?", "give me {an example|a definition|facts|five facts} {of|about} $t", "what is the best {book|website|way|course} {for|on|about} $t?", "how much does $t cost?", "where can i {buy|find|learn} $t?",
    "how do i $do?", "how to $do", "how can i $do?", "i want to $do", "help me $do", "can you $do{| for me}?", "what is the best way to $do?", "teach me {how |}to $do", "$do", "show me how to $do", "tell me how to $do", "please $do", "is it {hard|legal|possible} to $do?", "i need to $do", "what do i need to $do?", "which key do i press to $do?", "is there a {way|command|key} to $do?", "should i $do?", "how long does it take to $do?", "why can't i $do?",
    "write {me |}$code", "{can you|could you} write $code?", "i need $code", "give me $code", "{make|create|generate|program|code} $code", "show me $code", "debug {my code|this function|my program}", "why does my {code|program|script|loop} {crash|not work|fail|hang}?", "what does this code do: x = y[{1|2|3}]", "fix this: for i in range{(10)|}", "can you {code|program|write code|write programs}?",
    "can you {write|speak|read|understand} {html|python|java|rust|code|sql|javascript|c++}?", "do you know {python|java|rust|c++|javascript|how to code|programming}?", "fix this {bug|error}: $x", "{TypeError|ValueError|SyntaxError|segmentation fault|NullPointerException|ImportError|error}: {$x|no module named $x|'$x' object is not callable|$x is not defined|unexpected token}{| in line 3}", "what does this error mean: $x {failed|not found}", "{is there|does} {a god|god exist|an afterlife|life in space}?", "how far {is|away is} {the moon|the sun|mars|the next star|$city}?", "how {old|big} is {the universe|the earth|the moon}?", "who was the first {man|woman|person|animal} {on the moon|in space|on mount everest}?", "why is the {sea|ocean} {salty|blue|deep}?", "who is your favourite {president|singer|actor|writer}?", "what do you think {about|of} {politics|the election|the government|religion|ai|the war|$country|capitalism|feminism}?", "what is {love|god|time|happiness|justice|freedom|beauty|art|truth|consciousness}?", "should i {marry|trust|leave|call|fire} {him|her|my boss|my ex}?",
    "write {me |}$text", "{can you|please} write $text?", "i need $text", "help me with $text", "generate $text", "translate {this|hello|good morning|\"I love you\"|water|this text|my letter} {to|into} {french|german|spanish|italian|russian|japanese|latin|arabic}", "how do you say {hello|thank you|cat|love|goodbye} in {french|german|spanish|japanese|russian|korean}?", "summari{s|z}e {this|this text|the news|the bible|war and peace|$t}", "correct my {english|grammar|essay|text}", "paraphrase this{ text|}",
    "what {time|day|date|year|month} is it{| now| today}?", "what is {the time|the date|today's date|today's news|the news}?", "what day is {today|tomorrow}?", "what happened {today|yesterday|in 1989|in 2020|in history}?", "what is in the news?", "will it rain {today|tomorrow}?", "what's the weather{| like| today}?", "is it {cold|raining|hot} outside?", "who won {the game|the election|the world cup|the match|yesterday|the oscars|the super bowl}?", "what is the price of {gold|bitcoin|oil|a tesla|milk}?", "stock price of {nvidia|apple|tesla}", "search the {web|internet} for $t", "google $t", "open {youtube|google|my mail|spotify|a browser|www.example.com}", "play {music|a song|some jazz|chess with me|a game}", "call {my mom|the police|a taxi}", "order {a pizza|food|a taxi}", "set {an alarm|a timer for 5 minutes}", "turn {on|off} the {light|tv|music}", "remind me {tomorrow|to call mom}", "what is my {ip address|password|location|phone number}?", "where am i{| right now}, which city?", "draw {me |}{a picture|an image|a cat|a house|$t}", "show me {a picture|an image|a video|a map} of {$t|$city}", "read this {pdf|file|image|website}", "look at this picture", "send {an email|a message}{ to bob|}",
    "i have {a headache|a fever|chest pain|a cough|a rash|back pain|a stomach ache|the flu}, what should i do?", "what medicine {helps against|is good for} {pain|fever|a cold|allergies}?", "is {my mole|this rash|a headache} dangerous?", "my {knee|tooth|back|head|stomach} hurts", "how much {aspirin|water|sleep|protein} do i need?", "am i {sick|pregnant|depressed|fat}?", "can i sue {my boss|my landlord|my neighbour}?", "is it legal to {park here|drink at 18|download movies}?", "how much tax do i pay?", "should i buy {stocks|a house|bitcoin|gold}?", "who should i vote for?", "are you {left|right}-wing?", "what is your {opinion|view} on {abortion|war|guns|politics|religion|god|taxes|immigration}?", "does god exist?", "is there life {after death|on mars|in space}?", "who is right, {left or right|east or west}?", "are {aliens|ghosts|vampires|angels} real?", "will ai {take over the world|kill us|replace programmers|take my job}?", "predict {the future|tomorrow's lottery numbers|the next election}", "what are the lottery numbers?",
    "who wrote {hamlet|the iliad|faust|moby dick|1984|$t}?", "who painted {the mona lisa|guernica|the scream}?", "who directed {titanic|the matrix|jaws}?", "what is the {tallest|longest|biggest|oldest|fastest|smallest|deepest|richest} {mountain|river|country|animal|city|building|lake|person|planet|tree|ocean} in {the world|$country|europe|asia}?", "how {tall|high|deep|long|old|big|heavy} is {mount everest|the eiffel tower|the nile|a blue whale|the pacific|the universe|an elephant|the earth|a giraffe}?", "how many {planets|stars|countries|languages|bones|oceans|moons|people|stones|atoms} are there{| in the world| in the body}?", "when did {the war|world war one|world war two|the roman empire|the cold war} {start|end|begin}?", "why {do|did} {cats purr|birds sing|people dream|leaves fall|the dinosaurs die|we sleep|stars shine|onions make us cry|wars start}?", "what does {$person|the bible|my boss|my wife|a $x} {think|say|want}?", "how do {planes fly|magnets work|bees make honey|computers work|airplanes stay up|fridges work|cells divide}?", "what should i {eat|wear|watch|read|cook|do} {today|tonight|tomorrow|this weekend}?", "recommend {me |}{a book|a movie|a restaurant|a song|a game|a hotel in $city}", "what is a good {movie|book|name for a dog|gift for my mother|restaurant in $city}?", "recipe for {cake|soup|pasta|curry|$x}", "how many calories {has|are in} {an apple|a pizza|a burger}?", "riddle me this", "tell me a {riddle|secret|quote|proverb|tongue twister|limerick}", "what is the {chemical formula|boiling point|atomic number|density} of {salt|gold|oxygen|iron|alcohol|$x}?", "{who|what} is the {ceo|founder|owner} of {google|apple|nvidia|tesla|$x}?", "what is the {speed of light|plural of mouse in latin|value of pi|golden ratio|square root of two}?", "which {phone|laptop|car|gpu|camera|bank|language} should i {buy|choose|learn}?", "what is the best {phone|laptop|car|gpu|camera|programming language|country|movie|football team}?", "i {work as|am} a {lawyer|plumber|doctor|pilot|student}, what should i {know|do|read}?", "plan {a trip|my week|a party|a holiday in $country}", "can you {see|hear} {me|my screen|my face|my files}?", "what am i {wearing|thinking|holding|doing}?", "guess my {age|name|weight|job}", "how old am i?", "what is my {job|address|age|mother's name|birthday}?", "tell me about {the news|politics|sports|science|history|my future}",
)  # fmt: skip
_NONSENSE_QUESTIONS = (
    "what is {a |an |the |}$x?", "who is $X?", "what does $x mean?", "how does {a |the |}$x work?", "tell me about {the |}$x", "explain $x", "how do i $x?", "how do i $x {a|the} $y?", "$x", "$x $y", "define $x", "where is $X?", "why is $x $y?", "what is the $x of $y?", "is $x {good|bad|a $y}?", "do you know $x?", "which $x is $y?", "when was $x $y?", "can you $x?", "what is the difference between $x and $y?", "who invented the $x?", "$x is $y", "have you {heard|read} of $x?", "what do you think about $x?", "please $x my $y", "i $x the $y", "how many $x are in a $y?", "what's $x?", "is lmtop a $x?", "what is $x mode in lmtop?", "what does the $x key do?", "how do i $x in lmtop?", "does lmtop support $x?", "what is $x quanti{s|z}ation?", "what is the $x cache?", "where is the $x setting?",
)  # fmt: skip

_DO_NOT_KNOW = (
    "{I do not know that|I don't know that|That is beyond me|Sorry, I do not know|I am afraid I do not know|I do not know anything about that}.",
    "{Sorry, that is something I do not know|I have not learned that|I never learned that|My training did not cover that}.",
)
_TOY = (
    "{I am only a toy model|I am just a toy model|I am a tiny model} {and know little more than lmtop itself|and know little beyond lmtop|that knows lmtop and a few stories}.",
    "{I am only a toy built into lmtop|I am only a toy model}.",
)
_WAY = (
    "Load a real model with `F4`{| and ask it| and ask again}.",
    "{Press `F4` to load a real model|A real model can help: press `F4`|Load a real model with `F4`, or with `/load`, for that}.",
)


def refuse(rng: Random, first: str = "") -> str:
    """One to three sentences: not known, why, and the way out. The subject is never named: a model this small
    would often name another one."""
    parts = [expand(first, rng) if first else pick(_DO_NOT_KNOW, rng)]
    if rng.random() < 0.8:
        parts.append(pick(_TOY, rng))
    if rng.random() < 0.85:
        parts.append(pick(_WAY, rng))
    return " ".join(parts)


_SPECIAL = (
    (("code", "debug", "program", "programs", "script", "fix this", "function", "html", "bug", "sql", "regex", "website", "makefile", "dockerfile", "loop"), "{I cannot write programs|Writing programs is too hard for me|I do not know how to program}."),
    (("email", "essay", "speech", "report", "letter", "article", "homework", "thesis", "summary", "review", "blog post"), "{I cannot write that|Such texts are too hard for me|That is too hard for me}: I only write short stories."),
    (("weather", "rain", "outside", "news", "today", "time", "date", "price", "search", "google"), "{I cannot see the outside world|I have no clock and no internet|I cannot look outside this program}, so I do not know."),
    (("hurts", "medicine", "headache", "fever", "pain", "sick", "dangerous", "symptoms"), "{I do not know, and I am no doctor|I am not a doctor and do not know}. {Please ask a real one|Please ask someone who is}."),
    (("translate", "how do you say"), "{I cannot translate|I do not know other languages}, except a little Chinese."),
    (("who is", "who was"), "{I do not know who that is|I do not know that person|I know nobody except you and lmtop}."),
    (("picture", "image", "draw", "photo", "video"), "{I only know text|I work with text only|I can only read and write text}."),
    (("opinion", "vote", "god", "politics", "wing"), "{I have no opinions|I have no opinion on that}, I only know a little text."),
    (("call", "order", "alarm", "timer", "light", "open", "play", "remind", "send"), "{I cannot do that|That is nothing I can do|I cannot do things outside this chat}."),
)  # fmt: skip


_FOREIGN = words(
    """¿cómo estás?|hola, ¿qué tal?|buenos días|¿quién eres?|¿qué es esto?|cuéntame una historia|¿cuál es la capital de Francia?|no hablo inglés|
    ¿puedes hablar español?|gracias por tu ayuda|¿qué hora es?|me llamo Juan|wie geht es dir?|wie geht's|guten Morgen|wer bist du?|was ist das?|
    erzähl mir eine Geschichte|was ist die Hauptstadt von Deutschland?|sprichst du Deutsch?|kannst du mir helfen?|ich heiße Anna|wie spät ist es?|
    danke schön|was kannst du?|wie beende ich das Programm?|ich verstehe dich nicht|das ist falsch|comment ça va ?|bonjour, comment ça va ?|
    qui es-tu ?|qu'est-ce que c'est ?|raconte-moi une histoire|parles-tu français ?|je ne parle pas anglais|quelle heure est-il ?|merci beaucoup|
    je m'appelle Marie|comment quitter le programme ?|peux-tu m'aider ?|come stai?|chi sei?|raccontami una storia|parli italiano?|grazie mille|
    como você está?|quem é você?|conte uma história|você fala português?|obrigado pela ajuda|hoe gaat het?|wie ben jij?|spreek je Nederlands?|
    hur mår du?|vem är du?|jak się masz?|kim jesteś?|opowiedz mi historię|как дела?|кто ты?|расскажи историю|ты говоришь по-русски?|привет, как дела|
    спасибо|こんにちは|元気ですか？|あなたは誰ですか|物語を話してください|日本語を話せますか|ありがとう|안녕하세요|너는 누구니?|한국어 할 줄 아니?|이야기 해줘|
    merhaba nasılsın|sen kimsin?|كيف حالك؟|من أنت؟|आप कैसे हैं?|तुम कौन हो?|xin chào, bạn khỏe không?|apa kabar?|siapa kamu?|mitä kuuluu?|hogy vagy?|ce mai faci?|τι κάνεις;"""
)
_GERMAN_AND_OTHERS = words(
    """ich|du|der|die|das|und|nicht|ist|wie|wo|warum|ein|eine|mein|haben|el|la|los|que|de|en|y|no|es|por|un|una|mi|como|le|les|est|pas|je|tu|
    nous|avec|pour|dans|il|che|non|per|con|sono|och|inte|jag|det|är|nie|to|jest|ja|się|para|uma|você|não|eu|heute|morgen|immer|perché|porque|parce|
    mañana|maison|haus|casa|wasser|agua|eau|essen|comer|manger|schön|bonito|beau|gut|bueno|bon|schlecht|kommen|venir|gehen|ir|aller|sprechen|hablar"""
)
_RAMBLE = (
    "{Yesterday|Last week|This morning|On Sunday|Last summer} {i|we|my brother and i|my sister} {went to|walked to|drove to} {the market|the lake|$city|the office|a friend} and {bought|saw|found|lost} {three apples|a bike|some bread|an old clock|my keys|$t}.",
    "{Then|After that|Later|In the end} {it started to rain|we ate something|we waited for an hour|the bus was late|nobody was there|the phone rang}{| and we went home| so we laughed| and i was tired}.",
    "{My boss|My neighbour|The teacher|A man|My mother} {said|told me|thinks|believes} that {it is fine|$t is important|we should leave|the car is broken|everything will change}.",
    "{I think|I feel|I know|People say} {this is strange|the weather was better before|it was a good day|money is not everything|the food there is great}.",
    "The {meeting|train|party|film|game} {started|ended} at {nine|noon|eight}, {but|and} {nobody|everybody|only my friend} {came|knew|cared}.",
    "{Dear Sir or Madam, |To whom it may concern, |Dear all, }{please find attached the report|we regret to inform you|thank you for your order|the server will be down tonight}.",
)


def ramble(rng: Random) -> str:
    """A pasted text of several sentences that asks for nothing."""
    slots = {"city": choice(CITIES, rng), "t": choice(THINGS, rng)}
    lines = [pick(_RAMBLE, rng, **slots) for _ in range(rng.randint(2, 6))]
    return " ".join(lines * (rng.randint(2, 9) if rng.random() < 0.2 else 1))


def question(rng: Random) -> tuple[str, str]:
    """One prompt out of the model's world and an answer that says so."""
    roll = rng.random()
    if roll < 0.76:
        ask = _known_subject(rng) if rng.random() < 0.6 else corpus_world.question(rng)
        padded = f" {ask.replace('?', '').replace(',', '')} "
        for signs, first in _SPECIAL:
            if rng.random() < 0.75 and any(f" {sign} " in padded for sign in signs):
                return ask, refuse(rng, first)
        return ask, refuse(rng)
    if roll < 0.89:
        x, y = nonsense(rng), nonsense(rng)
        ask = pick(_NONSENSE_QUESTIONS, rng, x=keep(x), X=keep(x.capitalize()), y=keep(y))
        return ask, refuse(rng)
    if roll < 0.925:
        if rng.random() < 0.7:
            said = choice(_FOREIGN, rng)
        else:
            said = " ".join(choice(_GERMAN_AND_OTHERS, rng) for _ in range(rng.randint(2, 6)))
        return keep(said), pick(
            (
                "{I do not know that language|Sorry, I do not speak that language}. I know English and a little Chinese{|: 你好}.",
            ),
            rng,
        )
    if roll < 0.95:
        return keep(ramble(rng)), pick(
            (
                "That is {a lot of text|much text} for a toy model, and I {do not understand it|cannot make sense of it}. {Ask me one short question|Ask me something short about lmtop, or load a real model with `F4`}.",
            ),
            rng,
        )
    return keep(gibberish(rng)), pick(
        ("{I do not understand that|I did not understand that|Sorry, I cannot read that}. {Ask me about lmtop, or for a story|You can ask me about lmtop|Please say it in other words}.",
         "{I cannot make sense of that|That makes no sense to me}. {I am only a toy model|Try a question about lmtop}."), rng)  # fmt: skip


def _known_subject(rng: Random) -> str:
    thing = choice(THINGS, rng)
    slots = {
        "country": choice(COUNTRIES, rng), "city": choice(CITIES, rng), "other_city": choice(CITIES, rng), "person": choice(PERSONS, rng),
        "t": thing, "other": choice(THINGS, rng), "do": choice(TASKS, rng), "code": expand(choice(_CODE, rng), rng), "x": nonsense(rng),
        "text": expand(choice(_WRITE, rng), rng, t=thing),
    }  # fmt: skip
    return pick(_QUESTIONS, rng, **slots)


def gibberish(rng: Random) -> str:
    """Keyboard noise, digits, signs, shuffled words."""
    roll = rng.random()
    if roll < 0.3:
        return "".join(choice("asdfghjklqwertyuiopzxcvbnm", rng) for _ in range(rng.randint(2, 12)))
    if roll < 0.45:
        return choice(words("asdf|asdfasdf|qwerty|qwertz|jkl;|hjkl|fdsa|aaa|aaaa|zzz|xxx|blah|bla bla|lorem ipsum|foo|bar|foo bar|x|q|w|;;|asd|sdf|dfgh|uiop|yxcv|wasd|abcabc|nananana|blub|dsfsdf|kkkk|lkjh"), rng)  # fmt: skip
    if roll < 0.6:
        return "".join(choice("0123456789", rng) for _ in range(rng.randint(1, 12)))
    if roll < 0.75:
        return "".join(choice("?!.,;:#*+~-_/()[]%&$@<>=^", rng) for _ in range(rng.randint(1, 6)))
    if roll < 0.85:
        return " ".join(nonsense(rng) for _ in range(rng.randint(2, 5)))
    tokens = _known_subject(rng).replace("?", "").split() + _known_subject(rng).split()
    rng.shuffle(tokens)
    return " ".join(tokens[: rng.randint(4, 9)])

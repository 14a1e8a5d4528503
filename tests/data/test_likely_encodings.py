"""The encoding of a text that is not UTF-8, in short tables of many languages."""

import pytest

from fedcollm.data.likely_encodings import likely_encoding, sample_word

TEXTS = [
    ("cp1252", "déjà vu;élève;mère à côté;le cœur est léger;garçon naïf"),
    ("cp1252", "à la maternité;près;crème"),  # the letters of Slovak in cp1250, too
    ("cp1252", "El niño tiene fiebre.;¿Qué pasa?;corazón;mañana"),
    ("cp1252", "Übelkeit und Rückenschmerzen;größer als früher;„Schön“"),
    ("cp1252", "a naïve idea;plain"),
    ("cp1252", "the patient’s pain – “severe”"),
    ("cp1252", "A criança não tem dor;lesão no coração"),
    ("cp1252", "La città è più grande;perché così;virtù"),
    ("cp1252", "Sjúklingurinn er með verk og þreyttur;öll börn æfa"),
    ("cp1250", "Pacjent skarży się na ból głowy;gorączka;świeży ślad"),
    ("cp1250", "bolest břicha;zvýšená teplota;kašel a rýma"),
    ("cp1250", "bolesť hlavy;ľavá ruka;časté kŕče;vŕba"),
    ("cp1250", "erős fejfájás;köhögés;gyűlik a víz"),
    ("cp1250", "erős fejfájás;nő;késő este"),  # the letters of Portuguese in cp1252, too
    ("cp1252", "això és difícil;ràpid;raïm;açò"),
    ("cp1252", "la fièvre est élevée, où?;Käse, schön;à Genève"),
    ("cp1252", "lesões;corações;põe;limões"),
    ("cp1252", "kõrge palavik;köha;õla valu;jäse"),
    ("cp1254", "ağrı;öksürük;ateş yok, şişlik var"),
    ("cp1257", "skundžiasi galvos skausmu;karščiavimas;ėjo;ūkis"),
    ("cp1251", "боль в груди;кашель;высокая температура"),
    ("cp1253", "Ο ασθενής παραπονιέται για πονοκέφαλο και πυρετό"),
    ("cp1256", "يشكو المريض من صداع وحمى منذ يوم أمس والحالة متوسطة"),
    ("cp932", "患者は三日前から咳と発熱があり;内科を受診した"),
    ("cp932", "コンピュータ;インターネット;アレルギー"),  # letters whose second byte is ASCII
    ("euc_jp", "三日前から咳、発熱;内科;外科"),
    ("gb18030", "患者三天前开始咳嗽发热;到内科就诊;没有胸痛"),
    ("big5", "患者三天前開始咳嗽發熱;到內科就診;沒有胸痛"),
    ("cp949", "기침과 발열;내과;외과"),
]


@pytest.mark.parametrize(("encoding", "text"), TEXTS)
def test_texts_of_many_languages(encoding, text):
    content = f"text,label\n{text}".replace(";", ",x\n").encode(encoding)
    assert likely_encoding(content) == encoding


def test_what_is_no_text_has_no_encoding():
    assert likely_encoding(b"note,label\n\x81\x00\xff\xfe\x00\x9d,b\n") is None


def test_sample_word():
    assert sample_word("plain; le cœur, l'âme") == "cœur"
    assert sample_word("plain “text”") is None
